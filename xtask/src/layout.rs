//! Which functions of the sidecar lie together in its file.
//!
//! The kernel maps a program's file in pieces of 64 KiB around what is touched, so a few hundred functions spread over
//! three megabytes keep most of the file resident. `queue-proxy/layout.ld` puts those that run between the start and the
//! first answers next to each other. It is made from a profile that lists them:
//!
//! ```sh
//! CARGO_PROFILE_SIDECAR_STRIP=none cargo xtask sidecar
//! valgrind --tool=callgrind --demangle=no --callgrind-out-file=<profile> <sidecar>   # a few requests, then SIGTERM
//! cargo xtask layout <profile>
//! ```
//!
//! Names carry no hash of the compiler's. One that no longer exists changes nothing, and one that is missing costs a
//! few pages: the list need not follow every change.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};

pub(crate) const FILE: &str = "queue-proxy/layout.ld";

/// Writes the layout from callgrind's account of what ran.
pub(crate) fn write(root: &Path, profile: &str) -> Result<()> {
    let text = fs::read_to_string(profile).with_context(|| format!("cannot read the profile {profile}"))?;
    let names = functions(&text);
    ensure!(
        names.len() > 100,
        "{profile} names {} functions: is it callgrind's, of a binary with symbols?",
        names.len()
    );
    let members = members_of_libc()?;
    let own = names.iter().filter(|name| name.starts_with("_ZN") || name.starts_with("_R")).map(|name| pattern(name));
    let own: BTreeSet<String> = own.collect();
    let of_libc: BTreeSet<&str> =
        members.iter().filter(|(_, symbol)| names.contains(&**symbol)).map(|(member, _)| &**member).collect();
    let mut out =
        String::from("/* Made by `cargo xtask layout`, whose source says why. */\nSECTIONS\n{\n  .text.together : {\n");
    for name in own {
        writeln!(out, "    *(.text.{name} .text.unlikely.{name})")?;
    }
    for member in of_libc {
        writeln!(out, "    *libc.a:{member}(.text .text.*)")?;
    }
    out.push_str("  }\n}\nINSERT BEFORE .text;\n");
    let file = root.join(FILE);
    fs::write(&file, out).with_context(|| format!("cannot write {}", file.display()))
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

/// The name without what changes from one compilation to the next.
fn pattern(name: &str) -> String {
    // `17h`, sixteen digits and `E` end a name of the older form; `$` means something to the linker.
    let hash = name.len().checked_sub(20).filter(|at| name.is_char_boundary(*at) && name[*at..].starts_with("17h"));
    match hash {
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

/// Every function of the C library with the part of the archive that has it.
fn members_of_libc() -> Result<Vec<(String, String)>> {
    let output = |program: &str, arguments: &[&str]| -> Result<String> {
        let output =
            Command::new(program).args(arguments).output().with_context(|| format!("cannot start {program}"))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let archive = output("cc", &["-print-file-name=libc.a"])?;
    let symbols = output("nm", &["-A", "--defined-only", archive.trim()])?;
    // `libc.a:malloc.o:0000000000000000 T malloc`
    let split = |line: &str| {
        let mut words = line.split_whitespace();
        let member = words.next()?.rsplit(':').nth(1)?.to_owned();
        Some((member, words.last()?.to_owned()))
    };
    Ok(symbols.lines().filter_map(split).collect())
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
        assert_eq!(pattern("_RNvCslNYArtu3iFV_3std4main.240"), "_RNvCs*_3std4main.*");
    }
}
