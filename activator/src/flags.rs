//! The command line: upstream's flags, those that its libraries bring along included, and ours.
//!
//! Upstream reads it as Go's programs do: one dash or two, a value after `=` or as the next argument (never for a
//! switch), and nothing more after the first argument that is no flag.

use std::net::SocketAddr;

use clap::Parser;

/// Holds requests for revisions without ready pods, wakes them, and passes the requests on.
///
/// The flags of upstream's activator, with one dash or two, and more.
#[derive(Debug, Parser)]
#[command(name = "activator", version, about)]
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
    #[command(flatten)]
    _ignored: Ignored,
}

/// What upstream's programs take from their libraries.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Accepted, as upstream's activator does, and without effect: all logs go to standard \
                               error, and no request to the Kubernetes API needs to be slowed down")]
struct Ignored {
    #[arg(long = "kube-api-qps")]
    _qps: Option<f64>,
    #[arg(long = "kube-api-burst")]
    _burst: Option<i64>,
    #[arg(long = "vmodule")]
    _vmodule: Option<String>,
    #[arg(long = "log_backtrace_at")]
    _log_backtrace_at: Option<String>,
    #[arg(long = "log_dir")]
    _log_dir: Option<String>,
    #[arg(long = "log_file")]
    _log_file: Option<String>,
    #[arg(long = "log_file_max_size")]
    _log_file_max_size: Option<u64>,
    #[arg(long = "stderrthreshold")]
    _stderrthreshold: Option<String>,
    #[arg(long = "logtostderr", num_args = 0..=1, require_equals = true)]
    _logtostderr: Option<Option<String>>,
    #[arg(long = "alsologtostderr", num_args = 0..=1, require_equals = true)]
    _alsologtostderr: Option<Option<String>>,
    #[arg(long = "add_dir_header", num_args = 0..=1, require_equals = true)]
    _add_dir_header: Option<Option<String>>,
    #[arg(long = "one_output", num_args = 0..=1, require_equals = true)]
    _one_output: Option<Option<String>>,
    #[arg(long = "skip_headers", num_args = 0..=1, require_equals = true)]
    _skip_headers: Option<Option<String>>,
    #[arg(long = "skip_log_headers", num_args = 0..=1, require_equals = true)]
    _skip_log_headers: Option<Option<String>>,
}

/// Flags whose value, if there is one, follows `=`.
const SWITCHES: [&str; 8] = [
    "logtostderr",
    "alsologtostderr",
    "add_dir_header",
    "one_output",
    "skip_headers",
    "skip_log_headers",
    "help",
    "version",
];

// === impl Flags ===

impl Flags {
    /// Those of this process; ends it if they make no sense.
    pub(crate) fn read() -> Self {
        Self::parse_from(as_go_reads(std::env::args()))
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

/// An empty value is none.
fn set(flag: &Option<String>) -> Option<&str> {
    flag.as_deref().filter(|value| !value.is_empty())
}

fn as_go_reads(arguments: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut arguments = arguments.into_iter();
    let mut read: Vec<_> = arguments.next().into_iter().collect();
    while let Some(argument) = arguments.next() {
        let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else { break };
        if flag.is_empty() {
            break;
        }
        let flag = match flag {
            "h" => "help",
            "V" => "version",
            flag => flag,
        };
        let value = if flag.contains('=') || SWITCHES.contains(&flag) { None } else { arguments.next() };
        read.push(match value {
            Some(value) => format!("--{flag}={value}"),
            None => format!("--{flag}"),
        });
    }
    read
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Flags, clap::Error> {
        Flags::try_parse_from(as_go_reads(std::iter::once("activator").chain(line.split(' ')).map(str::to_owned)))
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
        // All that its usage lists.
        parse(
            "-add_dir_header -alsologtostderr=false -kube-api-burst 10 -kube-api-qps 1.5 -log_backtrace_at a.go:1 \
             -log_dir /tmp -log_file a -log_file_max_size 1 -logtostderr -one_output=true -skip_headers \
             --skip_log_headers -stderrthreshold 2 -v 2 -vmodule a=1,b=2",
        )
        .expect("upstream's");
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
    fn what_has_no_effect_is_said_to_have_none() {
        let help = parse("-help").expect_err("help").to_string();
        let (ours, ignored) = help.split_once("without effect").expect("a heading");
        assert!(ours.contains("--kubeconfig") && ours.contains("--v <"), "{help}");
        assert!(["--vmodule", "--logtostderr", "--kube-api-qps"].iter().all(|flag| ignored.contains(flag)), "{help}");
    }
}
