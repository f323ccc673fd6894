//! What upstream's processes read from their command line and machine, in a form that our options understand.

use std::ffi::OsString;

/// Flags of Go's loggers: their owners' manifests may set them, and here they mean nothing.
const LOGGING: [&str; 11] = [
    "add_dir_header",
    "alsologtostderr",
    "log_backtrace_at",
    "log_dir",
    "log_file",
    "log_file_max_size",
    "logtostderr",
    "skip_headers",
    "stderrthreshold",
    "v",
    "vmodule",
];
/// Those of them that need no value.
const SWITCHES: [&str; 4] = ["add_dir_header", "alsologtostderr", "logtostderr", "skip_headers"];

/// The arguments of a process of upstream as ours: `-flag` is `--flag`, flags of its logger are left out, and without
/// `--roles` the name under which the program was started tells the role.
pub fn arguments(from: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut from = from.into_iter();
    let program = from.next().unwrap_or_default();
    let mut out = vec![program.clone()];
    while let Some(argument) = from.next() {
        let Some(flag) = argument.to_str().and_then(flag) else {
            out.push(argument);
            continue;
        };
        let (name, has_value) = flag.split_once('=').map_or((flag, false), |(name, _)| (name, true));
        if !LOGGING.contains(&name) {
            out.push(format!("--{flag}").into());
        } else if !has_value && !SWITCHES.contains(&name) {
            from.next();
        }
    }
    let says = |name: &str| out.iter().any(|argument| argument.to_str().is_some_and(|text| text.starts_with(name)));
    if !says("--roles") && std::env::var_os("ROLES").is_none() {
        let file = std::path::Path::new(&program).file_name().and_then(std::ffi::OsStr::to_str);
        if let Some(role) = file.and_then(role_of) {
            out.push(format!("--roles={role}").into());
        }
    }
    out
}

/// The text of a flag with a name of more than one letter, or of the logger's `-v`.
fn flag(argument: &str) -> Option<&str> {
    let text = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    let name = text.split('=').next().unwrap_or_default();
    let long = name.len() > 1 && name.starts_with(|c: char| c.is_ascii_alphabetic());
    (long || name == "v").then_some(text)
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

    fn read(arguments_: &[&str]) -> Vec<String> {
        let all = arguments(arguments_.iter().map(OsString::from));
        all.into_iter().map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn flags_of_go() {
        let given = ["x", "-kubeconfig=/k", "--server", "http://a", "-v", "5", "--logtostderr", "-vmodule=a=1", "-h"];
        assert_eq!(read(&given), ["x", "--kubeconfig=/k", "--server", "http://a", "-h"]);
        assert_eq!(read(&["x", "-disable-ha", "--", "-"]), ["x", "--disable-ha", "--", "-"]);
    }

    #[test]
    fn a_link_under_an_upstream_name_needs_no_roles() {
        assert_eq!(read(&["/ko-app/kourier"]), ["/ko-app/kourier", "--roles=ingress"]);
        assert_eq!(read(&["/ko-app/controller", "--roles", "ingress"]), ["/ko-app/controller", "--roles", "ingress"]);
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
