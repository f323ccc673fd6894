//! Whether the Kubernetes API is one that this program is meant for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// What upstream asks for.
const MINIMUM: &str = "v1.34.0";
const PATIENCE: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);

/// Asks for the API's version, as often as it takes within a minute.
pub(crate) async fn check(client: &kube::Client, minimum: Option<&str>) -> Result<()> {
    let minimum = minimum.filter(|text| !text.is_empty()).unwrap_or(MINIMUM);
    let wanted = parse(minimum).with_context(|| {
        format!("KUBERNETES_MIN_VERSION has the value {minimum:?}, which is not a version such as {MINIMUM}")
    })?;
    let mut tries = 0;
    let version = loop {
        tries += 1;
        match client.apiserver_version().await {
            Ok(version) => break version.git_version,
            Err(error) if tries == PATIENCE => {
                return Err(error).context("the Kubernetes API does not tell its version; is it there?");
            }
            Err(error) => tracing::warn!(%error, "the Kubernetes API does not tell its version yet"),
        }
        tokio::time::sleep(PAUSE).await;
    };
    let found = parse(&version).with_context(|| format!("the Kubernetes API has the version {version:?}"))?;
    ensure!(
        found >= wanted,
        "kubernetes version {version:?} is not compatible, need at least {minimum:?} (this can be overridden with the \
         env var \"KUBERNETES_MIN_VERSION\")"
    );
    Ok(())
}

/// Major, minor and patch, whatever follows them.
fn parse(text: &str) -> Option<[u64; 3]> {
    let text = text.trim().trim_start_matches('v').split(['-', '+']).next()?;
    let mut numbers = text.split('.').map(str::parse);
    let version = [numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next().unwrap_or(Ok(0)).ok()?];
    numbers.next().is_none().then_some(version)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn versions_are_compared_by_number() {
        assert!(parse("v1.35.0-eks-1") > parse("v1.34.9") && parse("v1.34.10+k3s1") > parse("1.34.9"));
        assert_eq!(parse("v1.34"), Some([1, 34, 0]));
        assert!(["", "v1", "latest", "1.2.3.4"].iter().all(|text| parse(text).is_none()));
    }
}
