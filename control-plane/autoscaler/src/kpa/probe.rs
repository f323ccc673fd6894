//! Asks a revision's public Service who answers: only if it is the activator may the last pod go.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use controller::Tasks;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::Api;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};

const TIMEOUT: Duration = Duration::from_secs(1);
/// A cluster's name server answers at once.
const LOOKUP_TIMEOUT: Duration = Duration::from_millis(300);
const PERIOD: Duration = Duration::from_secs(1);
const GIVE_UP: Duration = Duration::from_secs(45);
const ACTIVATOR: &str = "activator";

/// How a Service name becomes an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceLookup {
    /// `<service>.<namespace>.svc.<cluster domain>`, as any pod of a cluster does; Endpoints if that name means nothing here.
    #[default]
    ClusterDns,
    /// The first address of the Service's Endpoints.
    Endpoints,
}

pub struct Prober {
    client: kube::Client,
    tasks: Tasks,
    cluster_domain: String,
    lookup: ServiceLookup,
    following: Mutex<BTreeSet<String>>,
}

// === impl Prober ===

impl Prober {
    pub fn new(client: kube::Client, tasks: Tasks, cluster_domain: String, lookup: ServiceLookup) -> Arc<Self> {
        Arc::new(Prober { client, tasks, cluster_domain, lookup, following: Mutex::default() })
    }

    /// Whether the activator answers for the Service right now.
    pub async fn confirm(&self, namespace: &str, service: &str, protocol: &str) -> bool {
        match timeout(TIMEOUT, self.ask(namespace, service, protocol)).await {
            Ok(Ok(who)) => who == ACTIVATOR,
            Ok(Err(error)) => {
                tracing::debug!(namespace, service, %error, "activator probe failed");
                false
            }
            Err(_) => false,
        }
    }

    /// Keeps asking until the activator answers or 45 s have passed, then calls `on_end`. Once per Service at a time.
    pub fn follow(
        self: Arc<Self>,
        namespace: &str,
        service: &str,
        protocol: &str,
        on_end: impl FnOnce() + Send + 'static,
    ) {
        let (namespace, service, protocol) = (namespace.to_owned(), service.to_owned(), protocol.to_owned());
        let name = format!("{namespace}/{service}");
        if !self.following.lock().insert(name.clone()) {
            return;
        }
        let tasks = self.tasks.clone();
        tasks.spawn("activator probe", async move {
            let asking = async {
                let mut ticks = interval(PERIOD);
                ticks.tick().await;
                loop {
                    ticks.tick().await;
                    if self.confirm(&namespace, &service, &protocol).await {
                        return;
                    }
                }
            };
            let _ = timeout(GIVE_UP, asking).await;
            self.following.lock().remove(&name);
            on_end();
        });
    }

    async fn ask(
        &self,
        namespace: &str,
        service: &str,
        protocol: &str,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let (port, port_name) = if protocol == "h2c" { (81, "http2") } else { (80, "http") };
        let host = format!("{service}.{namespace}.svc.{}", self.cluster_domain);
        let known = match self.lookup {
            ServiceLookup::ClusterDns => resolve(&host, port).await,
            ServiceLookup::Endpoints => None,
        };
        let address = match known {
            Some(address) => address,
            None => {
                let endpoints = Api::<Endpoints>::namespaced(self.client.clone(), namespace).get(service).await?;
                first_address(&endpoints, port_name).ok_or("the Service has no endpoints")?
            }
        };
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn("activator probe connection", async move {
            let _ = connection.await;
        });
        // The double slash is upstream's, and so part of what activators must take.
        let request = Request::get("//healthz")
            .header(header::HOST, format!("{host}:{port}"))
            .header(header::USER_AGENT, "Knative-Autoscaling-Probe")
            .header("K-Network-Probe", ACTIVATOR)
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        if response.status() != StatusCode::OK {
            return Err(format!("status {}", response.status()).into());
        }
        let body = Limited::new(response.into_body(), 1024).collect().await?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

async fn resolve(host: &str, port: u16) -> Option<SocketAddr> {
    let found = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, port))).await.ok()?.ok()?;
    found.into_iter().next()
}

fn first_address(endpoints: &Endpoints, port_name: &str) -> Option<SocketAddr> {
    endpoints.subsets.iter().flatten().find_map(|subset| {
        let ip = subset.addresses.iter().flatten().find_map(|address| address.ip.parse().ok())?;
        let port = subset.ports.iter().flatten().find(|port| port.name.as_deref() == Some(port_name))?;
        Some(SocketAddr::new(ip, u16::try_from(port.port).ok()?))
    })
}
