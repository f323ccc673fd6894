//! The gateway's own configuration file: where its configuration comes from, and nothing that could come from there.
//!
//! Upstream's bootstrap asks for the state of the world; this one asks for delta. Node id, the admin cluster
//! `service_stats` and the xDS cluster `xds_cluster` have upstream's names.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use serde_json::{Value, json};

/// Where the admin interface listens. Anyone who reaches it controls the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admin {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Bootstrap {
    /// The control plane's xDS address.
    pub xds: SocketAddr,
    pub admin: Admin,
    /// What the control plane chooses the gateway's fleet by; upstream's id by default.
    pub node_id: String,
    /// Likewise, under `metadata`.
    pub node_metadata: BTreeMap<String, String>,
    /// Upstream's protocol (state of the world) instead of delta.
    pub state_of_the_world: bool,
    /// Take routes by scope, so that a changed route is all that travels; not with the state of the world.
    pub scopes: bool,
    /// Keep statistics of every cluster: useful with many gateways, megabytes with many services.
    pub cluster_stats: bool,
    /// Worker threads.
    pub concurrency: usize,
    /// How long open connections may go on after the gateway was told to drain.
    pub drain_seconds: u32,
}

const NODE_ID: &str = "3scale-kourier-gateway";
const NODE_CLUSTER: &str = "kourier-knative";

// === impl Bootstrap ===

impl Bootstrap {
    pub fn new(xds: SocketAddr, admin: Admin) -> Self {
        Bootstrap {
            xds,
            admin,
            node_id: NODE_ID.to_owned(),
            node_metadata: BTreeMap::new(),
            state_of_the_world: false,
            scopes: true,
            cluster_stats: false,
            concurrency: 2,
            drain_seconds: 15,
        }
    }

    /// The file for `envoy -c`. It is JSON; Envoy reads it under a name that ends in `.json` or `.yaml`.
    pub fn render(&self) -> String {
        let api_type = if self.state_of_the_world { "GRPC" } else { "DELTA_GRPC" };
        let ads = json!({"ads": {}, "resource_api_version": "V3"});
        let admin = match &self.admin {
            Admin::Tcp(address) => socket(*address),
            Admin::Unix(path) => json!({"pipe": {"path": path}}),
        };
        let keepalive = json!({"connection_keepalive": {"interval": "30s", "timeout": "5s"}});
        let http2 = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": keepalive},
            }
        });
        let mut metadata = self.node_metadata.clone();
        if self.scopes && !self.state_of_the_world {
            metadata.insert(xds::ROUTES.to_owned(), xds::SCOPES.to_owned());
        }
        let mut bootstrap = json!({
            "node": {"id": self.node_id, "cluster": NODE_CLUSTER, "metadata": metadata},
            "admin": {"address": admin},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": api_type,
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {
                        "cluster_name": "xds_cluster",
                        // Envoy's own would be 0.5 s, doubling to 30 s.
                        "retry_policy": {"retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"}},
                    }}],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            // Most services sleep: what a worker thread needs for a cluster is made with the first request for it.
            "cluster_manager": {"enable_deferred_cluster_creation": true},
            "deferred_stat_options": {"enable_deferred_creation_stats": true},
            "static_resources": {
                "clusters": [
                    {
                        "name": "service_stats",
                        "type": "STATIC",
                        "connect_timeout": "0.25s",
                        "load_assignment": assignment("service_stats", &admin),
                    },
                    {
                        "name": "xds_cluster",
                        "type": "STATIC",
                        "connect_timeout": "1s",
                        "typed_extension_protocol_options": http2,
                        "load_assignment": assignment("xds_cluster", &socket(self.xds)),
                    },
                ],
            },
        });
        if !self.cluster_stats {
            let patterns = [
                // Not those of every scope.
                json!({"safe_regex": {"google_re2": {}, "regex": "http\\.ingress_http\\.[^.]*"}}),
                json!({"prefix": "listener."}),
                json!({"prefix": "listener_manager."}),
                json!({"prefix": "cluster_manager."}),
                json!({"prefix": "control_plane."}),
                json!({"prefix": "server."}),
                json!({"prefix": "main_thread."}),
                json!({"prefix": "cluster.xds_cluster."}),
            ];
            bootstrap["stats_config"] = json!({"stats_matcher": {"inclusion_list": {"patterns": patterns}}});
        }
        serde_json::to_string_pretty(&bootstrap).expect("JSON values can be written")
    }

    /// Arguments after the program's name; `config` is the path of the rendered file.
    pub fn arguments(&self, config: &std::path::Path) -> Vec<String> {
        let config = config.to_string_lossy().into_owned();
        let values = [
            ("-c", config),
            ("--concurrency", self.concurrency.to_string()),
            ("--drain-time-s", self.drain_seconds.to_string()),
            ("--drain-strategy", "immediate".to_owned()),
            ("--log-level", "warning".to_owned()),
        ];
        let mut arguments: Vec<String> =
            values.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        arguments.push("--disable-hot-restart".to_owned());
        arguments
    }
}

fn socket(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}})
}

fn assignment(cluster: &str, address: &Value) -> Value {
    json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]})
}
