//! Which functions of a program lie together in its file.
//!
//! The kernel maps a program's file in pieces of 64 KiB around what is touched, so a few thousand functions spread over
//! twenty megabytes keep most of them resident. `layout/<program>.ld` puts those that run next to each other, and
//! `layout/link.rs`, the build script of each program, gives it to the linker. `cargo xtask layout <program>` makes it: it
//! builds everything, runs a scenario of `benches` under callgrind, and looks up in the crates' libraries where the
//! functions that ran came from.
//!
//! Names carry no hash of the compiler's, so they hold for every profile and selection of packages. The name of a generic
//! function is then that of all its instances, of which the program has hundreds; the crate that an instance was compiled
//! with tells most of them apart. A name that no longer exists changes nothing, and one that is missing costs a few pages:
//! the lists need not follow every change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, envoy, run};

/// What makes a program do what it does in a cluster.
struct Scenario {
    /// The program that is linked, in the ordinary release build.
    binary: &'static str,
    /// Part of the command of the processes that count.
    process: &'static str,
    /// Of `benches`.
    arguments: &'static [&'static str],
    needs_envoy: bool,
}

/// Functions of one name that a crate has, as files and sections are written in the linker's language.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Origin {
    files: String,
    sections: String,
}

/// What `nm` tells of a function.
#[derive(Debug, PartialEq)]
struct Symbol<'a> {
    name: &'a str,
    size: u64,
    section: &'a str,
}

/// What share of an origin's code ran decides in which part it is, the densest first.
const SHARES: [f64; 3] = [0.9, 0.3, 0.0];

/// What is in no library: the program's own files, whatever its name.
const OWN: &str = "*/deps/[!l]*.rcgu.o";

/// Makes the layout of `program`. `profiles` are callgrind's accounts of runs by hand, which count as well.
pub(crate) fn make(root: &Path, program: &str, profiles: &[String]) -> Result<()> {
    let scenario = scenario(program)?;
    let packages = ["benches", "activator", "queue-proxy", "standalone", "control-plane"];
    let packages = packages.map(|package| format!("--package={package}"));
    run(cargo().args(["build", "--release"]).args(packages).env("CARGO_PROFILE_RELEASE_STRIP", "none"))?;
    let folder = root.join("target/layout").join(program);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let binaries = root.join("target/release");
    let mut benches = Command::new("valgrind");
    benches.args(["--tool=callgrind", "--demangle=no", "--trace-children=yes"]);
    benches.arg("--trace-children-skip=*envoy*,*nginx*");
    // What a program did since the last time is lost when it is killed.
    benches.args(["--dump-every-bb=2000000", &format!("--callgrind-out-file={}/%p", folder.display())]);
    benches.arg(binaries.join("benches")).args(scenario.arguments);
    if scenario.needs_envoy {
        benches.arg("--envoy").arg(envoy::ensure(root)?);
    }
    run(&mut benches)?;

    let mut texts = profiles.iter().map(|profile| read(Path::new(profile))).collect::<Result<Vec<_>>>()?;
    for file in fs::read_dir(&folder)? {
        let text = read(&file?.path())?;
        if text.lines().any(|line| line.starts_with("cmd:") && line.contains(scenario.process)) {
            texts.push(text);
        }
    }
    let ran: BTreeSet<&str> = texts.iter().flat_map(|text| functions(text)).collect();
    ensure!(ran.len() > 100, "{} functions ran: does the program have symbols?", ran.len());
    let binary = nm(&binaries.join(scenario.binary))?;
    let text = script(&symbols(&binary), &origins(&libraries(&binaries.join("deps"))?), &ran);
    let file = root.join("layout").join(program).with_extension("ld");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn scenario(program: &str) -> Result<Scenario> {
    Ok(match program {
        "activator" => Scenario {
            binary: "activator",
            process: "release/activator ",
            arguments: &[
                "activator",
                "--revisions=20",
                "--connections=1,20",
                "--rounds=1",
                "--seconds=1",
                "--rates=200",
                "--held=50",
                "--storm=5",
            ],
            needs_envoy: false,
        },
        // Its role is a process of the same program there.
        "control-plane" => Scenario {
            binary: "benches",
            process: "benches ingress-role ",
            arguments: &["ingress-scale", "--ingresses=60", "--changes=5", "--routes=scopes"],
            needs_envoy: true,
        },
        "queue-proxy" => Scenario {
            binary: "queue-proxy",
            process: "release/queue-proxy",
            arguments: &["queue-proxy", "--rounds=1", "--seconds=0.5", "--alone"],
            needs_envoy: false,
        },
        other => bail!("{other:?} has no layout; activator, control-plane and queue-proxy have"),
    })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Names appear once in full, `fn=(12) name` or `cfn=(12) name`, and by number from then on.
fn functions(profile: &str) -> BTreeSet<&str> {
    let named = |line: &'_ str| -> Option<usize> {
        let rest = line.strip_prefix('c').unwrap_or(line).strip_prefix("fn=(")?;
        Some(line.len() - rest.len() + rest.find(") ")? + 2)
    };
    let names = profile.lines().filter_map(|line| named(line).map(|start| &line[start..]));
    // A recursion's depth follows an apostrophe.
    names.map(|name| name.split('\'').next().unwrap_or(name)).collect()
}

/// The linker script: what ran, where most of its neighbours ran as well first. `origins` are of what is in a library.
fn script(program: &[Symbol<'_>], origins: &HashMap<&str, BTreeSet<Origin>>, ran: &BTreeSet<&str>) -> String {
    // How much there is, and how much of it ran.
    let mut sizes: BTreeMap<Origin, [u64; 2]> = BTreeMap::new();
    for symbol in program {
        let own = || Origin { files: OWN.to_owned(), sections: format!(".text.{}", pattern(symbol.name)) };
        let known = origins.get(symbol.name).cloned().unwrap_or_else(|| [own()].into());
        for origin in known {
            let [all, hot] = sizes.entry(origin).or_default();
            *all += symbol.size;
            *hot += if ran.contains(symbol.name) { symbol.size } else { 0 };
        }
    }
    let mut parts: [BTreeMap<&str, Vec<&str>>; SHARES.len()] = Default::default();
    for (origin, [all, hot]) in sizes.iter().filter(|(_, [_, hot])| *hot > 0) {
        let share = *hot as f64 / *all as f64;
        let part = SHARES.iter().position(|least| share >= *least).unwrap_or(SHARES.len() - 1);
        parts[part].entry(&origin.files).or_default().push(&origin.sections);
    }
    let mut out =
        String::from("/* Made by `cargo xtask layout`, whose source says why. */\nSECTIONS\n{\n  .text.together : {\n");
    for (files, sections) in parts.iter().flatten() {
        out.extend([format!("    {files}(\n      "), sections.join("\n      "), "\n    )\n".to_owned()]);
    }
    // Images are linked with the C library, others are not.
    let of_libc =
        ran.iter().filter_map(|name| origins.get(*name)).flatten().filter(|origin| origin.files.contains(".a:"));
    let of_libc: BTreeSet<&Origin> = of_libc.collect();
    out.extend(of_libc.iter().map(|origin| format!("    {}({})\n", origin.files, origin.sections)));
    out.push_str("  }\n}\nINSERT BEFORE .text;\n");
    out
}

/// The name without what changes from one compilation to the next.
fn pattern(name: &str) -> String {
    // `17h`, sixteen digits and `E` end a name of the older form, or are followed by the optimiser's own number;
    // `$` means something to the linker.
    let is_hash = |at: &usize| {
        let hash = name.get(at + 3..at + 20);
        hash.is_some_and(|hash| hash.ends_with('E') && hash[..16].bytes().all(|digit| digit.is_ascii_hexdigit()))
    };
    match name.rmatch_indices("17h").map(|(at, _)| at).find(is_hash) {
        Some(at) => format!("{}17h*", name[..at].replace('$', "?")),
        None => without_crates(&without_number(name).replace('$', "?")),
    }
}

/// Optimisation as a whole numbers functions that have the same name: `kind.240`.
fn without_number(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((start, number)) if number.bytes().all(|byte| byte.is_ascii_digit()) => format!("{start}.*"),
        _ => name.to_owned(),
    }
}

/// The newer form has its hashes inside: `Cs`, letters and digits, and `_`, before every crate's name.
fn without_crates(name: &str) -> String {
    let mut parts = name.split("Cs");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let hash = part.find('_').filter(|end| part[..*end].chars().all(|c| c.is_ascii_alphanumeric()));
        out.push_str("Cs");
        out.push_str(hash.map_or_else(|| part.to_owned(), |end| format!("*{}", &part[end..])).as_str());
    }
    out
}

/// Every library that something can come from, with its symbols: crates', the standard library's, the C library.
fn libraries(deps: &Path) -> Result<Vec<(String, String)>> {
    let sysroot = PathBuf::from(output("rustc", &["--print=target-libdir"])?.trim());
    let mut libraries = Vec::new();
    for folder in [deps, &sysroot] {
        for file in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = file?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            // `libnet-6cd6b5e2a2d5f7b1.rlib`
            if let (Some("rlib"), Some((name, _))) = (path.extension().and_then(OsStr::to_str), name.rsplit_once('-')) {
                libraries.push((format!("*{name}-*.rlib:*"), nm(&path)?));
            }
        }
    }
    let libc = output("cc", &["-print-file-name=libc.a"])?;
    libraries.push(("*libc.a".to_owned(), nm(Path::new(libc.trim()))?));
    Ok(libraries)
}

/// Where each symbol comes from.
fn origins(libraries: &[(String, String)]) -> HashMap<&str, BTreeSet<Origin>> {
    let mut origins: HashMap<&str, BTreeSet<Origin>> = HashMap::new();
    for (files, text) in libraries {
        if files == "*libc.a" {
            for member in text.split("\nSymbols from ").skip(1) {
                // `/usr/lib/libc.a[malloc.o]:`
                let name =
                    member.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map_or("", |(name, _)| name);
                let origin = Origin { files: format!("{files}:{name}"), sections: ".text .text.*".to_owned() };
                for symbol in symbols(member) {
                    origins.entry(symbol.name).or_default().insert(origin.clone());
                }
            }
            continue;
        }
        for symbol in symbols(text) {
            let here = origins.entry(symbol.name).or_default();
            // A function has a section of its own, whose name ends with it; one that shares its section stays there.
            if let Some(prefix) = symbol.section.strip_suffix(symbol.name) {
                let sections = format!("{prefix}{}", pattern(symbol.name));
                here.insert(Origin { files: files.clone(), sections });
            }
        }
    }
    origins
}

/// `name |value| class| type| size|line|section`, a line for each.
fn symbols(nm: &str) -> Vec<Symbol<'_>> {
    let symbol = |line| {
        let columns: Vec<&str> = str::split(line, '|').map(str::trim).collect();
        let [name, _, _, "FUNC" | "IFUNC", size, _, section] = columns[..] else { return None };
        Some(Symbol { name, size: u64::from_str_radix(size, 16).ok()?, section })
    };
    nm.lines().filter_map(symbol).collect()
}

fn nm(path: &Path) -> Result<String> {
    output("nm", &["--format=sysv", "--defined-only", &path.to_string_lossy()])
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot start {program}"))?;
    ensure!(output.status.success(), "{program} {arguments:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_once_and_lose_their_hash() {
        let profile = "events: Ir\nfn=(1) _ZN3net4dial17h0123456789abcdefE\n1 2\ncfn=(2) malloc'2\ncalls=1 3\ncfn=(1)\n\
                       fn=(3) _ZN8a$LT$b$GT$17h0123456789abcdefE\n";
        let found = functions(profile);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found.contains("malloc"));
        assert_eq!(pattern("_ZN8a$LT$b$GT$17h0123456789abcdefE"), "_ZN8a?LT?b?GT?17h*");
        assert_eq!(pattern("_ZN8a17h0123456789abcdefE.llvm.123"), "_ZN8a17h*");
        assert_eq!(pattern("_RNvCslNYArtu3iFV_3std4main.240"), "_RNvCs*_3std4main.*");
    }

    #[test]
    fn what_ran_lies_before_what_did_not() {
        let line = |name: &str, size: u64, section: &str| {
            format!("{name}|0000|   T  |              FUNC|{size:016x}|     |{section}\n")
        };
        let dial = "_ZN3net4dial17h0123456789abcdefE";
        let [some, more, other] = [0, 1, 2].map(|n| format!("_ZN3vec4push17h0123456789abcde{n}E"));
        let main = "_ZN4main4main17h0123456789abcdefE";
        let text = |name: &str| line(name, 16, &format!(".text.{name}"));
        let libraries = [
            (
                "*libnet-*.rlib:*".to_owned(),
                format!("{}{}{}", line(dial, 16, &format!(".text.unlikely.{dial}")), text(&some), text(&more)),
            ),
            ("*libwire-*.rlib:*".to_owned(), text(&other)),
            (
                "*libc.a".to_owned(),
                format!(
                    "\n\nSymbols from libc.a[malloc.o]:\n\n{}\n\nSymbols from libc.a[fork.o]:\n{}",
                    line("malloc", 9, ".text"),
                    line("fork", 9, ".text")
                ),
            ),
        ];
        let program = [dial, &some, &more, &other, main].map(|name| line(name, 16, ".text")).concat();
        let ran = [dial, &some, main, "malloc"].into();
        let script = script(&symbols(&program), &origins(&libraries), &ran);
        let lines: Vec<&str> = script.lines().map(str::trim).skip(4).collect();
        let expected = [
            "*/deps/[!l]*.rcgu.o(",
            ".text._ZN4main4main17h*",
            ")",
            "*libnet-*.rlib:*(",
            ".text.unlikely._ZN3net4dial17h*",
            ")",
            "*libnet-*.rlib:*(",
            ".text._ZN3vec4push17h*",
            ")",
            "*libc.a:malloc.o(.text .text.*)",
            "}",
            "}",
            "INSERT BEFORE .text;",
        ];
        assert_eq!(lines, expected);
    }
}
