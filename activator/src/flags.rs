//! The command line: upstream's flags, those that its libraries bring along included, and ours.

use std::net::SocketAddr;

use api::go::{LOGGING, flags};
use clap::Parser;

/// Holds requests for revisions without ready pods, wakes them, and passes the requests on.
///
/// The flags of upstream's activator, with one dash or two, and more.
#[derive(Debug, Parser)]
#[command(name = "activator", version, about, after_help = without_effect())]
pub(crate) struct Flags {
    /// Kubeconfig file (or KUBECONFIG); in a pod its service account is used without it.
    #[arg(long)]
    kubeconfig: Option<String>,
    /// Address of the Kubernetes API, instead of the kubeconfig's, or without one.
    #[arg(long, alias = "master")]
    server: Option<String>,
    /// Context of the kubeconfig to use.
    #[arg(long)]
    context: Option<String>,
    /// Cluster of the kubeconfig to use, instead of its context's.
    #[arg(long)]
    cluster: Option<String>,
    /// Where HTTP/1.1 comes in, instead of port 8012.
    #[arg(long)]
    pub(crate) listen_http: Option<SocketAddr>,
    /// Where HTTP/2 comes in, instead of port 8013.
    #[arg(long)]
    pub(crate) listen_h2c: Option<SocketAddr>,
    /// Where encrypted requests come in, instead of port 8112.
    #[arg(long)]
    pub(crate) listen_tls: Option<SocketAddr>,
    /// Where profiles are served, instead of port 8008.
    #[arg(long)]
    pub(crate) listen_profiling: Option<SocketAddr>,
    /// How much the client of the Kubernetes API logs: its requests from 6 on, all it does from 8 on.
    #[arg(long = "v", default_value_t = 0)]
    verbosity: i32,
    /// Accepted, as upstream's activator does, and without effect: no request needs to be slowed down.
    #[arg(long = "kube-api-qps")]
    _qps: Option<f64>,
    /// The same.
    #[arg(long = "kube-api-burst")]
    _burst: Option<i64>,
}

// === impl Flags ===

impl Flags {
    /// Those of this process; ends it if they make no sense.
    pub(crate) fn read() -> Self {
        let mut arguments = std::env::args();
        let program = arguments.next();
        Self::parse_from(program.into_iter().chain(flags(arguments, &[])))
    }

    pub(crate) fn kubeconfig(&self) -> Option<&str> {
        set(&self.kubeconfig)
    }

    pub(crate) fn server(&self) -> Option<&str> {
        set(&self.server)
    }

    pub(crate) fn context(&self) -> Option<&str> {
        set(&self.context)
    }

    pub(crate) fn cluster(&self) -> Option<&str> {
        set(&self.cluster)
    }

    /// What is logged at `level`, as in `RUST_LOG`.
    pub(crate) fn filter(&self, level: &str) -> String {
        match self.verbosity {
            ..6 => level.to_owned(),
            6 | 7 => format!("{level},kube=debug"),
            8.. => format!("{level},kube=trace"),
        }
    }
}

fn without_effect() -> String {
    let names: Vec<_> = LOGGING.iter().map(|name| format!("--{name}")).collect();
    format!("Accepted as well, and without effect, since all logs go to standard error: {}", names.join(", "))
}

/// An empty value is none.
fn set(flag: &Option<String>) -> Option<&str> {
    flag.as_deref().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Flags, clap::Error> {
        let flags = flags(line.split(' ').map(str::to_owned), &[]);
        Flags::try_parse_from(std::iter::once("activator".to_owned()).chain(flags))
    }

    #[test]
    fn upstreams_flags_are_taken_as_go_takes_them() {
        for line in
            ["-kubeconfig /a -server=http://b --cluster c", "--kubeconfig=/a --server http://b -cluster=c end -x"]
        {
            let flags = parse(line).expect(line);
            assert_eq!(
                (flags.kubeconfig(), flags.server(), flags.cluster()),
                (Some("/a"), Some("http://b"), Some("c"))
            );
        }
        assert_eq!(parse("-kubeconfig= -server=").expect("empty").kubeconfig(), None);
        parse("-kube-api-burst 10 -kube-api-qps 1.5 -logtostderr -vmodule a=1,b=2").expect("upstream's");
        for (line, kind) in [
            ("-unknown", ErrorKind::UnknownArgument),
            ("-v2", ErrorKind::UnknownArgument),
            ("-v many", ErrorKind::ValueValidation),
            ("-kube-api-qps x", ErrorKind::ValueValidation),
            ("-h", ErrorKind::DisplayHelp),
            ("-version", ErrorKind::DisplayVersion),
        ] {
            assert_eq!(parse(line).expect_err(line).kind(), kind, "{line}");
        }
    }

    #[test]
    fn verbosity_is_that_of_the_kubernetes_client() {
        let filter = |line| parse(line).expect(line).filter("info");
        assert_eq!(
            ["-v -1", "-v=4", "-v=6", "--v 9"].map(filter),
            ["info", "info", "info,kube=debug", "info,kube=trace"]
        );
    }

    #[test]
    fn help_says_what_has_no_effect() {
        let help = parse("-help").expect_err("help").to_string();
        assert!(
            ["--kubeconfig", "--v <", "--vmodule", "--kube-api-qps"].iter().all(|flag| help.contains(flag)),
            "{help}"
        );
    }
}
