//! Labels, annotations, ports and other names that are contracts between processes.

/// `serving.knative.dev/*`.
pub mod serving {
    pub const SERVICE: &str = "serving.knative.dev/service";
    pub const SERVICE_UID: &str = "serving.knative.dev/serviceUID";
    pub const CONFIGURATION: &str = "serving.knative.dev/configuration";
    pub const CONFIGURATION_UID: &str = "serving.knative.dev/configurationUID";
    pub const CONFIGURATION_GENERATION: &str = "serving.knative.dev/configurationGeneration";
    pub const REVISION: &str = "serving.knative.dev/revision";
    pub const REVISION_UID: &str = "serving.knative.dev/revisionUID";
    pub const ROUTE: &str = "serving.knative.dev/route";
    pub const ROUTE_NAMESPACE: &str = "serving.knative.dev/routeNamespace";
    pub const ROUTING_STATE: &str = "serving.knative.dev/routingState";
    pub const ROUTING_STATE_MODIFIED: &str = "serving.knative.dev/routingStateModified";
    pub const ROUTES: &str = "serving.knative.dev/routes";
    pub const NO_GC: &str = "serving.knative.dev/no-gc";
    pub const LAST_PINNED: &str = "serving.knative.dev/lastPinned";
    pub const ROLLOUT_DURATION: &str = "serving.knative.dev/rollout-duration";
    pub const PROGRESS_DEADLINE: &str = "serving.knative.dev/progress-deadline";
    pub const DEPLOYMENT_HASH: &str = "serving.knative.dev/deployment-hash";
    pub const DOMAIN_MAPPING_UID: &str = "serving.knative.dev/domainMappingUID";
    pub const DOMAIN_MAPPING_NAMESPACE: &str = "serving.knative.dev/domainMappingNamespace";
    pub const CREATOR: &str = "serving.knative.dev/creator";
    pub const LAST_MODIFIER: &str = "serving.knative.dev/lastModifier";
    /// Label `app` on a revision's children.
    pub const APP: &str = "app";

    /// Values of [`ROUTING_STATE`].
    pub const ROUTING_PENDING: &str = "pending";
    pub const ROUTING_ACTIVE: &str = "active";
    pub const ROUTING_RESERVE: &str = "reserve";

    pub const ROLLOUT_DURATION_ALIASES: &[&str] = &[ROLLOUT_DURATION, "serving.knative.dev/rolloutDuration"];
}

/// `queue.sidecar.serving.knative.dev/*`.
pub mod queue_sidecar {
    pub const RESOURCE_PERCENTAGE: &[&str] = &[
        "queue.sidecar.serving.knative.dev/resource-percentage",
        "queue.sidecar.serving.knative.dev/resourcePercentage",
    ];
    pub const CPU_REQUEST: &str = "queue.sidecar.serving.knative.dev/cpu-resource-request";
    pub const CPU_LIMIT: &str = "queue.sidecar.serving.knative.dev/cpu-resource-limit";
    pub const MEMORY_REQUEST: &str = "queue.sidecar.serving.knative.dev/memory-resource-request";
    pub const MEMORY_LIMIT: &str = "queue.sidecar.serving.knative.dev/memory-resource-limit";
    pub const EPHEMERAL_STORAGE_REQUEST: &str = "queue.sidecar.serving.knative.dev/ephemeral-storage-resource-request";
    pub const EPHEMERAL_STORAGE_LIMIT: &str = "queue.sidecar.serving.knative.dev/ephemeral-storage-resource-limit";
    /// Ours: `enabled` makes the sidecar say in `Server-Timing` where a request's time went.
    pub const SERVER_TIMING: &str = "queue.sidecar.serving.knative.dev/server-timing";
    /// Ours: a drain is over once nothing was in flight and nothing came for this long (`500ms`, `2s`): for
    /// installations whose gateway lets go of a pod faster than upstream's 30 s allow for.
    pub const DRAIN_IDLE_PERIOD: &str = "queue.sidecar.serving.knative.dev/drain-idle-period";
}

/// `autoscaling.knative.dev/*`: annotations, each with its aliases; the first one present wins.
pub mod autoscaling {
    pub const GROUP: &str = "autoscaling.knative.dev";
    pub const CLASS: &str = "autoscaling.knative.dev/class";
    pub const METRIC: &str = "autoscaling.knative.dev/metric";

    pub const MIN_SCALE: &[&str] = &["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"];
    pub const MAX_SCALE: &[&str] = &["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"];
    pub const INITIAL_SCALE: &[&str] =
        &["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"];
    pub const ACTIVATION_SCALE: &[&str] = &["autoscaling.knative.dev/activation-scale"];
    pub const SCALE_DOWN_DELAY: &[&str] =
        &["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"];
    pub const SCALE_TO_ZERO_POD_RETENTION: &[&str] = &[
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
        "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
    ];
    pub const TARGET: &[&str] = &["autoscaling.knative.dev/target"];
    pub const TARGET_UTILIZATION: &[&str] = &[
        "autoscaling.knative.dev/target-utilization-percentage",
        "autoscaling.knative.dev/targetUtilizationPercentage",
    ];
    pub const TARGET_BURST_CAPACITY: &[&str] =
        &["autoscaling.knative.dev/target-burst-capacity", "autoscaling.knative.dev/targetBurstCapacity"];
    pub const WINDOW: &[&str] = &["autoscaling.knative.dev/window"];
    pub const PANIC_WINDOW_PERCENTAGE: &[&str] =
        &["autoscaling.knative.dev/panic-window-percentage", "autoscaling.knative.dev/panicWindowPercentage"];
    pub const PANIC_THRESHOLD_PERCENTAGE: &[&str] =
        &["autoscaling.knative.dev/panic-threshold-percentage", "autoscaling.knative.dev/panicThresholdPercentage"];
    pub const METRIC_AGGREGATION: &[&str] =
        &["autoscaling.knative.dev/metric-aggregation-algorithm", "autoscaling.knative.dev/metricAggregationAlgorithm"];

    pub const KPA: &str = "kpa.autoscaling.knative.dev";
    pub const HPA: &str = "hpa.autoscaling.knative.dev";
    pub const CONCURRENCY: &str = "concurrency";
    pub const RPS: &str = "rps";
    pub const CPU: &str = "cpu";
    pub const MEMORY: &str = "memory";
}

/// `networking.knative.dev/*` and `networking.internal.knative.dev/*`.
pub mod networking {
    pub const PREFIX: &str = "networking.knative.dev";
    pub const INGRESS_CLASS: &str = "networking.knative.dev/ingress.class";
    pub const INGRESS_CLASS_ALT: &str = "networking.knative.dev/ingress-class";
    pub const INGRESS_CLASS_ALIASES: &[&str] = &[INGRESS_CLASS, INGRESS_CLASS_ALT];
    pub const CERTIFICATE_CLASS: &str = "networking.knative.dev/certificate.class";
    pub const CERTIFICATE_CLASS_ALT: &str = "networking.knative.dev/certificate-class";
    pub const CERTIFICATE_CLASS_ALIASES: &[&str] = &[CERTIFICATE_CLASS, CERTIFICATE_CLASS_ALT];
    pub const DISABLE_EXTERNAL_TLS: &[&str] = &[
        "networking.knative.dev/disableAutoTLS",
        "networking.knative.dev/disable-auto-tls",
        "networking.knative.dev/disable-external-domain-tls",
    ];
    pub const HTTP_PROTOCOL: &[&str] = &["networking.knative.dev/httpOption", "networking.knative.dev/http-protocol"];
    pub const VISIBILITY: &str = "networking.knative.dev/visibility";
    pub const CLUSTER_LOCAL: &str = "cluster-local";
    pub const WILDCARD_DOMAIN: &str = "networking.knative.dev/wildcardDomain";
    pub const CERTIFICATE_TYPE: &str = "networking.knative.dev/certificate-type";
    pub const TRUST_BUNDLE: &str = "networking.knative.dev/trust-bundle";

    pub const ROLLOUT: &str = "networking.internal.knative.dev/rollout";
    pub const TAG_TO_HOST: &str = "networking.internal.knative.dev/tag-to-host";
    pub const SERVERLESS_SERVICE: &str = "networking.internal.knative.dev/serverlessservice";
    pub const SERVICE_TYPE: &str = "networking.internal.knative.dev/serviceType";
    pub const SERVICE_TYPE_PUBLIC: &str = "Public";
    pub const SERVICE_TYPE_PRIVATE: &str = "Private";
    pub const CERTIFICATE_UID: &str = "networking.internal.knative.dev/certificate-uid";

    pub const KOURIER_INGRESS_CLASS: &str = "kourier.ingress.networking.knative.dev";
    pub const ISTIO_INGRESS_CLASS: &str = "istio.ingress.networking.knative.dev";
    pub const CERT_MANAGER_CLASS: &str = "cert-manager.certificate.networking.knative.dev";
    pub const INGRESS_FINALIZER: &str = "ingresses.networking.internal.knative.dev";

    /// Values of an Ingress rule's visibility.
    pub const EXTERNAL_IP: &str = "ExternalIP";
    pub const CLUSTER_LOCAL_VISIBILITY: &str = "ClusterLocal";
}

/// Headers that the request path and the Ingress share.
pub mod headers {
    pub const REVISION: &str = "Knative-Serving-Revision";
    pub const NAMESPACE: &str = "Knative-Serving-Namespace";
    pub const TAG: &str = "Knative-Serving-Tag";
    pub const DEFAULT_ROUTE: &str = "Knative-Serving-Default-Route";
    pub const HASH: &str = "K-Network-Hash";
    pub const HASH_OVERRIDE: &str = "override";
}

pub mod features {
    pub const QUEUE_PROXY_PODINFO: &str = "features.knative.dev/queueproxy-podinfo";
    pub const HTTP_FULL_DUPLEX: &str = "features.knative.dev/http-full-duplex";
}

/// Ports of Services and of the queue-proxy.
pub mod ports {
    pub const SERVICE_HTTP: u16 = 80;
    pub const SERVICE_HTTP2: u16 = 81;
    pub const SERVICE_HTTPS: u16 = 443;
    pub const BACKEND_HTTP: u16 = 8012;
    pub const BACKEND_HTTP2: u16 = 8013;
    pub const BACKEND_HTTPS: u16 = 8112;
    pub const QUEUE_ADMIN: u16 = 8022;
    pub const AUTOSCALING_METRICS: u16 = 9090;
    pub const USER_METRICS: u16 = 9091;
    pub const PROFILING: u16 = 8008;
    pub const DEFAULT_USER: u16 = 8080;
}

pub const PROTOCOL_HTTP1: &str = "http1";
pub const PROTOCOL_H2C: &str = "h2c";
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
pub const EXAMPLE_CHECKSUM: &str = "knative.dev/example-checksum";

/// The first of `aliases` present in `annotations`, with the key found.
pub fn first<'a, 'k>(
    annotations: &'a std::collections::BTreeMap<String, String>,
    aliases: &[&'k str],
) -> Option<(&'k str, &'a str)> {
    aliases.iter().find_map(|key| annotations.get(*key).map(|value| (*key, value.as_str())))
}
