//! `flag`: the command lines of upstream's programs.

/// Flags of their logger (klog), which upstream's manifests may set; those of them that need no value first.
pub const LOGGING: [&str; 12] = [
    "add_dir_header",
    "alsologtostderr",
    "logtostderr",
    "one_output",
    "skip_headers",
    "skip_log_headers",
    "log_backtrace_at",
    "log_dir",
    "log_file",
    "log_file_max_size",
    "stderrthreshold",
    "vmodule",
];
const LOGGING_SWITCHES: usize = 6;
const USUAL_SWITCHES: [&str; 2] = ["help", "version"];

/// The flags among what follows the program's name, as Go's programs read them: one dash or two, a value after `=` or as
/// the next argument (never for one of the `switches`), and nothing more after the first argument that is no flag.
/// Each is one text that begins with two dashes, and [`LOGGING`] are left out.
pub fn flags(arguments: impl IntoIterator<Item = String>, switches: &[&str]) -> Vec<String> {
    let mut arguments = arguments.into_iter();
    let mut read = Vec::new();
    while let Some(argument) = arguments.next() {
        let flag = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'));
        let Some(flag) = flag.filter(|flag| !flag.is_empty()) else { break };
        let flag = match flag {
            "h" => "help",
            "V" => "version",
            flag => flag,
        };
        let (name, has_value) = flag.split_once('=').map_or((flag, false), |(name, _)| (name, true));
        let is_switch = [switches, &USUAL_SWITCHES, &LOGGING[..LOGGING_SWITCHES]].concat().contains(&name);
        let value = if has_value || is_switch { None } else { arguments.next() };
        if LOGGING.contains(&name) {
            continue;
        }
        read.push(match value {
            Some(value) => format!("--{flag}={value}"),
            None => format!("--{flag}"),
        });
    }
    read
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> String {
        flags(line.split(' ').map(str::to_owned), &["on"]).join(" ")
    }

    #[test]
    fn one_dash_or_two_and_a_value_behind_or_next() {
        assert_eq!(read("-a 1 --b=2 -c= -on --d -3 -h"), "--a=1 --b=2 --c= --on --d=-3 --help");
        assert_eq!(read("-on=false -a -b"), "--on=false --a=-b");
        assert_eq!(read("-a"), "--a");
    }

    #[test]
    fn nothing_is_read_after_what_is_no_flag() {
        for end in ["end", "-", "--"] {
            assert_eq!(read(&format!("-on {end} -a 1")), "--on");
        }
    }

    #[test]
    fn the_loggers_are_left_out_with_their_values() {
        let all = "-add_dir_header -alsologtostderr=false -log_backtrace_at a.go:1 -log_dir /tmp -log_file a \
                   -log_file_max_size 1 -logtostderr -one_output=true -skip_headers --skip_log_headers \
                   -stderrthreshold 2 -v 2 -vmodule a=1,b=2 --a 1";
        assert_eq!(read(all), "--v=2 --a=1");
    }
}
