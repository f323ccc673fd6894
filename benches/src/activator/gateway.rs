//! Envoy in front of the activator, as an installation has it: it names the revision and keeps connections.

use std::{fs, net::SocketAddr, path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
};

pub(super) struct Gateway {
    pub(super) address: SocketAddr,
    child: Child,
    _folder: TempDir,
}

// === impl Gateway ===

impl Gateway {
    /// Sends everything to `backend`, for the bench's busy revision.
    pub(super) async fn start(envoy: &Path, backend: SocketAddr) -> Result<Self> {
        let folder = TempDir::new()?;
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let file = folder.path().join("envoy.json");
        fs::write(&file, bootstrap(address, backend).to_string())?;
        let child = Command::new(envoy)
            .arg("-c")
            .arg(&file)
            .args(["--concurrency", "2", "--use-dynamic-base-id", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", envoy.display()))?;
        let mut tries = 0;
        while TcpStream::connect(address).await.is_err() {
            tries += 1;
            ensure!(tries < 1000, "Envoy does not listen on {address}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Self { address, child, _folder: folder })
    }

    pub(super) async fn stop(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }
}

fn bootstrap(listen: SocketAddr, backend: SocketAddr) -> serde_json::Value {
    let address = |address: SocketAddr| serde_json::json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let header = |name: &str, value: &str| serde_json::json!({"header": {"key": name, "value": value}});
    let manager = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3";
    let router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    serde_json::json!({"static_resources": {
        "listeners": [{
            "name": "in", "address": address(listen),
            "filter_chains": [{"filters": [{"name": "http", "typed_config": {
                "@type": format!("{manager}.HttpConnectionManager"),
                "stat_prefix": "in",
                "http_filters": [{"name": "router", "typed_config": {"@type": router}}],
                "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
                    "match": {"prefix": "/"},
                    "route": {"cluster": "activator", "timeout": "0s"},
                    "request_headers_to_add": [
                        header("Knative-Serving-Namespace", "default"), header("Knative-Serving-Revision", "rev-0"),
                    ],
                }]}]},
            }}]}],
        }],
        "clusters": [{
            "name": "activator", "type": "STATIC", "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "activator", "endpoints": [{"lb_endpoints": [
                {"endpoint": {"address": address(backend)}},
            ]}]},
        }],
    }})
}
