//! The files of `/etc` that tell a container its name and whom to ask for others.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{Options, env};

pub(crate) fn files(pod: &Pod, options: &Options, ip: Ipv4Addr) -> Vec<(PathBuf, String)> {
    let name = env::hostname(pod);
    let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{name}\n");
    vec![
        ("/etc/resolv.conf".into(), resolv_conf(pod, options)),
        ("/etc/hosts".into(), hosts),
        ("/etc/hostname".into(), format!("{name}\n")),
    ]
}

fn resolv_conf(pod: &Pod, options: &Options) -> String {
    let spec = pod.spec.as_ref();
    let own = spec.and_then(|spec| spec.dns_config.as_ref());
    let host_network = spec.and_then(|spec| spec.host_network) == Some(true);
    let policy = spec.and_then(|spec| spec.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let (mut servers, mut searches, mut settings) = (Vec::new(), Vec::new(), Vec::new());
    match policy {
        "None" => {}
        "Default" => return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        "ClusterFirst" if host_network => return std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        _ => {
            let (namespace, domain) = (pod.namespace().unwrap_or_default(), &options.cluster_domain);
            servers.push(options.dns_ip.to_string());
            searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]);
            settings.push("ndots:5".to_owned());
        }
    }
    if let Some(own) = own {
        servers.extend(own.nameservers.iter().flatten().cloned());
        searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            settings.retain(|known| known.split(':').next() != Some(name.as_str()));
            settings.push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !settings.is_empty() {
        text.push_str(&format!("options {}\n", settings.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn pods_ask_the_cluster_first() {
        let pod: Pod = from_value(json!({
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"containers": [], "dnsConfig": {"searches": ["x.y"], "options": [{"name": "ndots", "value": "2"}]}},
        }))
        .unwrap();
        let text = resolv_conf(&pod, &Options::new("/tmp/x"));
        let expected =
            "search ns.svc.cluster.local svc.cluster.local cluster.local x.y\nnameserver 10.96.0.10\noptions ndots:2\n";
        assert_eq!(text, expected);
    }
}
