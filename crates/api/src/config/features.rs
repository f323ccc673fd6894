//! `config-features`. Unrecognised values keep the default; nothing here is an error.

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    Enabled,
    Allowed,
    Disabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecurePodDefaults {
    Disabled,
    AllowRootBounded,
    Enabled,
}

macro_rules! features {
    ($($field:ident, $key:literal, $default:ident;)*) => {
        #[derive(Clone, Debug, PartialEq)]
        pub struct Features {
            pub secure_pod_defaults: SecurePodDefaults,
            $(pub $field: Flag,)*
        }

        impl Default for Features {
            fn default() -> Self {
                Self {
                    secure_pod_defaults: SecurePodDefaults::Disabled,
                    $($field: Flag::$default,)*
                }
            }
        }

        impl Features {
            pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, String> {
                let mut config = Self::default();
                $(if let Some(flag) = data.get($key).and_then(|text| Flag::read(text)) {
                    config.$field = flag;
                })*
                if let Some(text) = data.get("secure-pod-defaults") {
                    match text.trim().to_ascii_lowercase().as_str() {
                        "enabled" => config.secure_pod_defaults = SecurePodDefaults::Enabled,
                        "allowrootbounded" => config.secure_pod_defaults = SecurePodDefaults::AllowRootBounded,
                        "disabled" => config.secure_pod_defaults = SecurePodDefaults::Disabled,
                        _ => {}
                    }
                }
                Ok(config)
            }
        }
    };
}

features! {
    multi_container, "multi-container", Enabled;
    multi_container_probing, "multi-container-probing", Disabled;
    autodetect_http2, "autodetect-http2", Disabled;
    tag_header_based_routing, "tag-header-based-routing", Disabled;
    queue_proxy_mount_podinfo, "queueproxy.mount-podinfo", Disabled;
    queue_proxy_resource_defaults, "queueproxy.resource-defaults", Disabled;
    podspec_affinity, "kubernetes.podspec-affinity", Disabled;
    podspec_topology_spread_constraints, "kubernetes.podspec-topologyspreadconstraints", Disabled;
    podspec_host_aliases, "kubernetes.podspec-hostaliases", Disabled;
    podspec_node_selector, "kubernetes.podspec-nodeselector", Disabled;
    podspec_runtime_class_name, "kubernetes.podspec-runtimeclassname", Disabled;
    podspec_tolerations, "kubernetes.podspec-tolerations", Disabled;
    podspec_security_context, "kubernetes.podspec-securitycontext", Disabled;
    podspec_share_process_namespace, "kubernetes.podspec-shareprocessnamespace", Disabled;
    podspec_host_ipc, "kubernetes.podspec-hostipc", Disabled;
    podspec_host_pid, "kubernetes.podspec-hostpid", Disabled;
    podspec_host_network, "kubernetes.podspec-hostnetwork", Disabled;
    podspec_priority_class_name, "kubernetes.podspec-priorityclassname", Disabled;
    podspec_scheduler_name, "kubernetes.podspec-schedulername", Disabled;
    podspec_dns_policy, "kubernetes.podspec-dnspolicy", Disabled;
    podspec_dns_config, "kubernetes.podspec-dnsconfig", Disabled;
    podspec_field_ref, "kubernetes.podspec-fieldref", Disabled;
    podspec_init_containers, "kubernetes.podspec-init-containers", Disabled;
    podspec_volumes_empty_dir, "kubernetes.podspec-volumes-emptydir", Enabled;
    podspec_volumes_host_path, "kubernetes.podspec-volumes-hostpath", Disabled;
    podspec_volumes_csi, "kubernetes.podspec-volumes-csi", Disabled;
    podspec_volumes_ephemeral, "kubernetes.podspec-volumes-ephemeral", Disabled;
    podspec_volumes_image, "kubernetes.podspec-volumes-image", Disabled;
    podspec_volumes_mount_propagation, "kubernetes.podspec-volumes-mount-propagation", Disabled;
    podspec_persistent_volume_claim, "kubernetes.podspec-persistent-volume-claim", Disabled;
    podspec_persistent_volume_write, "kubernetes.podspec-persistent-volume-write", Disabled;
    containerspec_add_capabilities, "kubernetes.containerspec-addcapabilities", Disabled;
}

// === impl Flag ===

impl Flag {
    fn read(text: &str) -> Option<Self> {
        match text.trim().to_ascii_lowercase().as_str() {
            "enabled" => Some(Self::Enabled),
            "allowed" => Some(Self::Allowed),
            "disabled" => Some(Self::Disabled),
            _ => None,
        }
    }

    pub fn is_enabled(self) -> bool {
        self == Self::Enabled
    }

    /// Enabled or Allowed.
    pub fn is_permitted(self) -> bool {
        self != Self::Disabled
    }
}

// === impl SecurePodDefaults ===

impl SecurePodDefaults {
    pub fn is_on(self) -> bool {
        self != Self::Disabled
    }
}
