//! What an image name means to the process back end: a program of this machine, or a reason why it cannot be had.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;

use crate::Binary;

/// Registry name whose images are programs of this machine.
const LOCAL: &str = "dev.local/";

/// Why a container of this image cannot be started: reason and message of its waiting state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageError {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The command line of `container`, before expansion of its environment.
pub(crate) fn command_line(
    container: &Container,
    binaries: &BTreeMap<String, Binary>,
) -> Result<Vec<String>, ImageError> {
    let image = container.image.as_deref().unwrap_or_default();
    if !is_valid(image) {
        return Err(ImageError {
            reason: "InvalidImageName",
            message: format!(
                "Failed to apply default image tag {image:?}: couldn't parse image name: invalid reference format"
            ),
        });
    }
    let command = container.command.clone().unwrap_or_default();
    let args = container.args.clone().unwrap_or_default();
    let Some(alias) = local_name(image) else { return Err(no_puller(container, image)) };
    if !command.is_empty() {
        return Ok([command, args].concat());
    }
    if alias == "host" {
        return Err(ImageError {
            reason: "CreateContainerError",
            message: format!(
                "image {image:?} runs a program of this machine: give its path in the container's command"
            ),
        });
    }
    let Some(binary) = binaries.get(alias) else {
        let known: Vec<&str> = binaries.keys().map(String::as_str).collect();
        return Err(ImageError {
            reason: "ErrImagePull",
            message: format!(
                "no program is known as {alias:?}: start with --bin {alias}=/path/to/program (known: {})",
                known.join(", ")
            ),
        });
    };
    let program = vec![binary.path.display().to_string()];
    Ok([program, binary.args.clone(), args].concat())
}

/// The program that the container's image stands for, if it is an alias.
pub(crate) fn binary<'a>(container: &Container, binaries: &'a BTreeMap<String, Binary>) -> Option<&'a Binary> {
    let alias = local_name(container.image.as_deref().unwrap_or_default())?;
    binaries.get(alias)
}

fn no_puller(container: &Container, image: &str) -> ImageError {
    if container.image_pull_policy.as_deref() == Some("Never") {
        return ImageError {
            reason: "ErrImageNeverPull",
            message: format!("Container image {image:?} is not present with pull policy of Never"),
        };
    }
    ImageError {
        reason: "ErrImagePull",
        message: format!(
            "cannot pull {image:?}: this machine runs programs, not images yet; use image dev.local/host with a command, \
             or dev.local/NAME with --bin NAME=/path/to/program"
        ),
    }
}

/// `name` of `dev.local/name[:tag][@digest]`.
fn local_name(image: &str) -> Option<&str> {
    let name = image.strip_prefix(LOCAL)?;
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    Some(name.split_once(':').map_or(name, |(name, _)| name))
}

/// Whether `image` is a reference: `[host[:port]/]path[:tag][@digest]` in the allowed characters.
fn is_valid(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let word = |text: &str, extra: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
    };
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    let has_host = path.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let component = |part: &str| {
        part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    (if has_host { word(first, ".-:") } else { component(first) })
        && parts.all(component)
        && tag.is_none_or(|tag| word(tag, "._-") && tag.len() <= 128)
        && digest
            .is_none_or(|digest| digest.split_once(':').is_some_and(|(kind, hex)| word(kind, "+._-") && word(hex, "")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(image: &str, command: &[&str], args: &[&str]) -> Container {
        let list = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect());
        Container { image: Some(image.into()), command: list(command), args: list(args), ..Container::default() }
    }

    fn line(image: &str, command: &[&str], args: &[&str]) -> Result<Vec<String>, &'static str> {
        let queue = Binary { path: "/bin/postrider".into(), args: vec!["queue-proxy".into()], user: None };
        let binaries = BTreeMap::from([("queue-proxy".to_owned(), queue)]);
        command_line(&container(image, command, args), &binaries).map_err(|error| error.reason)
    }

    #[test]
    fn local_images_are_programs() {
        assert_eq!(line("dev.local/queue-proxy:v1", &[], &["-v"]).unwrap(), ["/bin/postrider", "queue-proxy", "-v"]);
        assert_eq!(line("dev.local/host", &["python3"], &["a.py"]).unwrap(), ["python3", "a.py"]);
        assert_eq!(line("dev.local/host", &[], &[]), Err("CreateContainerError"));
        assert_eq!(line("dev.local/other", &[], &[]), Err("ErrImagePull"));
    }

    #[test]
    fn other_images_cannot_be_had() {
        assert_eq!(line("ghcr.io/a/b:1@sha256:00ff", &[], &[]), Err("ErrImagePull"));
        assert_eq!(line("nginx", &["nginx"], &[]), Err("ErrImagePull"));
        assert_eq!(line("Bad Name", &[], &[]), Err("InvalidImageName"));
        assert_eq!(line("a//b", &[], &[]), Err("InvalidImageName"));
    }
}
