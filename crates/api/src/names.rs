//! Names of children that stay within 63 characters.

use md5::{Digest, Md5};

const LONGEST: usize = 63;
const MD5_LENGTH: usize = 32;
const HEAD: usize = LONGEST - MD5_LENGTH;

/// `parent` + `suffix`, shortened with a hash where that would exceed 63 characters.
pub fn child_name(parent: &str, suffix: &str) -> String {
    if parent.len() + suffix.len() <= LONGEST {
        return format!("{parent}{suffix}");
    }
    if suffix.len() < HEAD {
        return format!("{}{}{suffix}", head(parent, HEAD - suffix.len()), md5_hex(&[parent]));
    }
    // The suffix alone is too long: hash both, then fill up with what fits of the suffix.
    let name = format!("{}{}", head(parent, HEAD), md5_hex(&[parent, suffix]));
    let name = format!("{name}{}", head(suffix, LONGEST.saturating_sub(name.len())));
    name.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()).to_owned()
}

fn head(text: &str, length: usize) -> &str {
    let mut end = length.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn md5_hex(parts: &[&str]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::child_name;

    #[test]
    fn short_names_are_joined_and_long_ones_hashed() {
        assert_eq!(child_name("hello", "-00001"), "hello-00001");
        assert_eq!(
            child_name("a-very-long-configuration-name-that-goes-on-and-on-and-on-00001", "-deployment"),
            "a-very-long-configur0871c4ac4765538aac0e072b7ca1f167-deployment"
        );
        let long = child_name(&"p".repeat(40), &"-".repeat(40));
        assert_eq!(long.len(), 63);
        assert!(long.len() <= 63 && !long.ends_with('-'));
    }
}
