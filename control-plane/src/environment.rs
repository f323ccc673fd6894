//! What upstream's processes read from their command line and machine, in a form that our options understand.

use std::ffi::OsString;

/// Flags that need no value.
const SWITCHES: [&str; 1] = ["disable-ha"];

/// The arguments of a process of upstream as ours: flags of its logger are left out, and without `--roles` the name under
/// which the program was started tells the role.
pub fn arguments(from: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let mut from = from.into_iter().map(|argument| argument.to_string_lossy().into_owned());
    let program = from.next().unwrap_or_default();
    let mut flags = api::go::flags(from, &SWITCHES);
    // How much its client of the API logs.
    flags.retain(|flag| !flag.starts_with("--v="));
    if !flags.iter().any(|flag| flag.starts_with("--roles")) && std::env::var_os("ROLES").is_none() {
        let file = std::path::Path::new(&program).file_name().and_then(std::ffi::OsStr::to_str);
        flags.extend(file.and_then(role_of).map(|role| format!("--roles={role}")));
    }
    std::iter::once(program).chain(flags).collect()
}

/// Upstream's processes by their programs' names.
fn role_of(program: &str) -> Option<&'static str> {
    Some(match program {
        "net-kourier-controller" | "kourier" => "ingress",
        "controller" => "controller",
        "autoscaler" => "autoscaler",
        _ => return None,
    })
}

/// The suffix of cluster names, from the search list that the kubelet gives a pod.
pub(crate) fn cluster_domain(resolv_conf: &str) -> String {
    let search = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("search"));
    let domain = search.flat_map(str::split_whitespace).find_map(|domain| domain.strip_prefix("svc."));
    domain.unwrap_or("cluster.local").trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(given: &[&str]) -> Vec<String> {
        arguments(given.iter().map(OsString::from))
    }

    #[test]
    fn flags_of_go() {
        let given = ["x", "-kubeconfig=/k", "--server", "http://a", "-v", "5", "--logtostderr", "-disable-ha", "-h"];
        assert_eq!(read(&given), ["x", "--kubeconfig=/k", "--server=http://a", "--disable-ha", "--help"]);
    }

    #[test]
    fn a_link_under_an_upstream_name_needs_no_roles() {
        assert_eq!(read(&["/ko-app/kourier"]), ["/ko-app/kourier", "--roles=ingress"]);
        assert_eq!(read(&["/ko-app/controller", "--roles", "ingress"]), ["/ko-app/controller", "--roles=ingress"]);
        assert_eq!(read(&["control-plane"]), ["control-plane"]);
    }

    #[test]
    fn the_domain_of_a_pods_search_list() {
        let file =
            "nameserver 10.96.0.10\nsearch default.svc.example.org svc.example.org example.org\noptions ndots:5\n";
        assert_eq!(cluster_domain(file), "example.org");
        assert_eq!(cluster_domain("search lan\n"), "cluster.local");
        assert_eq!(cluster_domain(""), "cluster.local");
    }
}
