//! Image names as registries understand them: `[registry/]repository[:tag]`.

use std::fmt;

/// Where an image is, fully qualified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    pub registry: String,
    pub repository: String,
    pub tag: String,
}

const DEFAULT_REGISTRY: &str = "index.docker.io";

// === impl Reference ===

impl Reference {
    pub fn parse(image: &str) -> Result<Self, String> {
        let invalid = |why: &str| format!("could not parse reference: {image}: {why}");
        // A colon after the last slash starts the tag; one before it belongs to the registry's port.
        let (name, tag) = match image.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (image, "latest"),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((registry, repository)) if registry.contains(['.', ':']) => (registry, repository.to_owned()),
            Some(_) => (DEFAULT_REGISTRY, name.to_owned()),
            None => (DEFAULT_REGISTRY, format!("library/{name}")),
        };
        let registry = if registry == "docker.io" { DEFAULT_REGISTRY } else { registry };
        if name.is_empty() || repository.len() < 2 || repository.len() > 255 {
            return Err(invalid("a repository name has between 2 and 255 characters"));
        }
        if !repository.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-./".contains(c)) {
            return Err(invalid("a repository name consists of a-z, 0-9 and _-./"));
        }
        if tag.is_empty() || tag.len() > 128 || !tag.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            return Err(invalid("a tag has between 1 and 128 characters of A-Z, a-z, 0-9 and _-."));
        }
        Ok(Reference { registry: registry.to_owned(), repository, tag: tag.to_owned() })
    }

    /// The same image by digest.
    pub fn at(&self, digest: &str) -> String {
        format!("{}/{}@{digest}", self.registry, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

/// `name@sha256:<64 hex digits>`.
pub(super) fn is_digest(image: &str) -> bool {
    image.rsplit_once("@sha256:").is_some_and(|(name, hex)| {
        !name.is_empty() && hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase())
    })
}
