//! The client of the Kubernetes API: from a kubeconfig, from an address alone, or from the pod we are in.

use anyhow::{Context, Result, bail};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use observe::{ApiCalls, Registry};
use tower::layer::layer_fn;

use crate::Options;

/// A client whose requests are noted in `registry`.
pub(crate) async fn connect(options: &Options, registry: &Registry) -> Result<kube::Client> {
    let selection = KubeConfigOptions { cluster: options.cluster.clone(), ..KubeConfigOptions::default() };
    let server = match &options.server {
        Some(server) => Some(server.parse().with_context(|| format!("--server {server} is no URL"))?),
        None => None,
    };
    let named = options.kubeconfig.is_some() || std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
    let mut config = match (&options.kubeconfig, &server) {
        (Some(path), _) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &selection).await?
        }
        (None, _) if named => kube::Config::from_kubeconfig(&selection).await.context("cannot use KUBECONFIG")?,
        // As it is, without credentials: a proxy of kubectl, or an API that asks for none.
        (None, Some(server)) => kube::Config::new(http::Uri::clone(server)),
        (None, None) => kube::Config::infer()
            .await
            .context("no kubeconfig and not in a cluster: name a kubeconfig with --kubeconfig or KUBECONFIG")?,
    };
    if let Some(server) = server {
        config.cluster_url = server;
    }
    let calls = ApiCalls::new(registry, &config.cluster_url);
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer_fn(|inner| calls.of(inner))).build())
}

/// Ends the start on an API that is older than `KUBERNETES_MIN_VERSION` says.
pub(crate) async fn check_version(client: &kube::Client, minimum: Option<&str>) -> Result<()> {
    let Some(minimum) = minimum.filter(|minimum| !minimum.is_empty()) else { return Ok(()) };
    let wanted = numbers(minimum).with_context(|| format!("KUBERNETES_MIN_VERSION is {minimum:?}, not as v1.34.0"))?;
    let version =
        client.apiserver_version().await.context("cannot ask the Kubernetes API for its version")?.git_version;
    if numbers(&version).is_some_and(|found| found < wanted) {
        bail!("kubernetes version {version:?} is not compatible, need at least {minimum:?} (KUBERNETES_MIN_VERSION)");
    }
    Ok(())
}

/// `v1.34.1-gke.5` as numbers; what follows them does not count.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let text = version.trim().trim_start_matches('v');
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let mut parts = text[..end].split('.').map(str::parse);
    let major = parts.next()?.ok()?;
    let mut next = || parts.next().map_or(Some(0), |part| part.ok());
    Some([major, next()?, next()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(numbers("v1.34.1-gke.5+x"), Some([1, 34, 1]));
        assert_eq!(numbers("1.35"), Some([1, 35, 0]));
        assert!(numbers("v1.9.0") < numbers("v1.34.0"));
        assert_eq!(numbers("latest"), None);
    }
}
