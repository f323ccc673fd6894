//! Volumes: names, sources behind flags, items.

use std::collections::BTreeSet;

use serde_json::Value;

use super::fields::{self, items, present, text};
use crate::checks;
use crate::config::{Features, Flag};
use crate::field_error::FieldErrors;
use crate::go;

/// Sources that Kubernetes knows and Serving never takes.
const NEVER: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "downwardAPI",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "iscsi",
    "nfs",
    "photonPersistentDisk",
    "portworxVolume",
    "quobyte",
    "rbd",
    "scaleIO",
    "storageos",
    "vsphereVolume",
];

pub(super) fn volumes(list: &[Value], mounted: &BTreeSet<&str>, features: &Features) -> FieldErrors {
    let mut errors = FieldErrors::none();
    let mut seen = BTreeSet::new();
    for (i, volume) in list.iter().enumerate() {
        let name = text(volume, "name");
        let mut own = FieldErrors::none();
        if !seen.insert(name) {
            own.add(FieldErrors::new(format!("duplicate volume name {}", go::quote(name)), &["name"]));
        }
        if !mounted.contains(name) {
            own.add(FieldErrors::new(format!("volume with name {} not mounted", go::quote(name)), &["name"]));
        }
        own.add(volume_source(volume, features));
        errors.add(own.via_index("volumes", i));
    }
    errors
}

/// The flagged sources: field, name in messages, flag.
fn flagged(features: &Features) -> [(&'static str, &'static str, Flag); 6] {
    [
        ("image", "Image", features.podspec_volumes_image),
        ("emptyDir", "EmptyDir", features.podspec_volumes_empty_dir),
        ("hostPath", "HostPath", features.podspec_volumes_host_path),
        ("csi", "CSI", features.podspec_volumes_csi),
        ("ephemeral", "Ephemeral", features.podspec_volumes_ephemeral),
        ("persistentVolumeClaim", "", features.podspec_persistent_volume_claim),
    ]
}

fn volume_source(volume: &Value, features: &Features) -> FieldErrors {
    let name = text(volume, "name");
    let mut errors = FieldErrors::none();
    let name_texts = checks::dns1123_label(name);
    if name.is_empty() {
        errors.add(FieldErrors::missing("name"));
    } else if !name_texts.is_empty() {
        errors.add(FieldErrors::invalid(name, "name"));
    } else {
        errors.add(flags(volume, features));
    }

    let sources = flagged(features);
    let known: Vec<&str> = sources.iter().map(|s| s.0).chain(NEVER.iter().copied()).collect();
    if let Some(map) = volume.as_object() {
        errors.add(fields::mask(map, &known, |key| {
            sources.iter().any(|(source, _, flag)| *source == key && flag.is_permitted())
        }));
    }
    let mut expected = vec!["secret", "configMap", "projected"];
    expected.extend(sources.iter().filter(|(.., flag)| flag.is_enabled()).map(|s| s.0));
    let given: Vec<&str> = ["secret", "configMap", "projected"]
        .into_iter()
        .chain(sources.iter().map(|s| s.0))
        .filter(|source| present(volume, source))
        .collect();
    match given.len() {
        0 if !NEVER.iter().any(|source| present(volume, source)) => errors.add(FieldErrors::neither(&expected)),
        0 | 1 => {}
        _ => errors.add(FieldErrors::both(&given)),
    }
    errors.and(contents(volume))
}

fn flags(volume: &Value, features: &Features) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (source, title, flag) in flagged(features) {
        if !present(volume, source) {
            continue;
        }
        if source == "persistentVolumeClaim" {
            let claim = text(&volume[source], "claimName");
            if !flag.is_enabled() {
                errors.add(FieldErrors::new(
                    format!("Persistent volume claim support is disabled, but found persistent volume claim {claim}"),
                    &[],
                ));
            }
            if volume[source]["readOnly"] != true && !features.podspec_persistent_volume_write.is_enabled() {
                errors.add(FieldErrors::new(
                    format!("Persistent volume write support is disabled, but found persistent volume claim {claim} that is not read-only"),
                    &[],
                ));
            }
        } else if !flag.is_enabled() {
            let name = text(volume, "name");
            errors.add(FieldErrors::new(
                format!("{title} volume support is disabled, but found {title} volume {name}"),
                &[],
            ));
        }
    }
    errors
}

fn contents(volume: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for source in ["secret", "configMap"] {
        errors.add(key_to_paths(&volume[source]));
    }
    for (i, source) in items(&volume["projected"], "sources").iter().enumerate() {
        errors.add(projected(source).via_index("projected", i));
    }
    let empty_dir = &volume["emptyDir"];
    let medium = text(empty_dir, "medium");
    if !["", "Memory"].contains(&medium) {
        errors.add(FieldErrors::invalid(medium, "emptyDir.medium"));
    }
    if let Some(limit) = empty_dir["sizeLimit"].as_str()
        && go::parse_quantity(limit).is_ok_and(go::Quantity::is_negative)
    {
        errors.add(FieldErrors::invalid(limit, "emptyDir.sizeLimit"));
    }
    if present(volume, "image") {
        let image = &volume["image"];
        if text(image, "reference").is_empty() {
            errors.add(FieldErrors::missing("image.reference"));
        }
        let policy = text(image, "pullPolicy");
        if !["", "Always", "Never", "IfNotPresent"].contains(&policy) {
            errors.add(FieldErrors::invalid(policy, "image.pullPolicy"));
        }
    }
    errors
}

fn key_to_paths(source: &Value) -> FieldErrors {
    let mut errors = FieldErrors::none();
    for (i, item) in items(source, "items").iter().enumerate() {
        for key in ["key", "path"] {
            if text(item, key).is_empty() {
                errors.add(FieldErrors::missing(key).via_index("items", i));
            }
        }
    }
    errors
}

fn projected(source: &Value) -> FieldErrors {
    const KINDS: &[&str] = &["secret", "configMap", "serviceAccountToken", "downwardAPI"];
    let mut errors = FieldErrors::none();
    if let Some(map) = source.as_object() {
        errors.add(fields::mask(map, &["clusterTrustBundle", "podCertificate"], |_| false));
    }
    let given: Vec<&str> = KINDS.iter().copied().filter(|kind| present(source, kind)).collect();
    match given.as_slice() {
        [] => errors.add(FieldErrors::neither(KINDS)),
        [_] => {}
        many => errors.add(FieldErrors::both(many)),
    }
    for (kind, required) in [("secret", "name"), ("configMap", "name"), ("serviceAccountToken", "path")] {
        if present(source, kind) {
            if text(&source[kind], required).is_empty() {
                errors.add(FieldErrors::missing(required).via(kind));
            }
            errors.add(key_to_paths(&source[kind]).via(kind));
        }
    }
    for (i, item) in items(&source["downwardAPI"], "items").iter().enumerate() {
        let mut own = match (present(item, "fieldRef"), present(item, "resourceFieldRef")) {
            (false, false) => FieldErrors::neither(&["fieldRef", "resourceFieldRef"]),
            (true, true) => {
                FieldErrors::new("Within a single item, cannot set both", &["fieldRef", "resourceFieldRef"])
            }
            _ => FieldErrors::none(),
        };
        if text(item, "path").is_empty() {
            own.add(FieldErrors::missing("path"));
        }
        errors.add(own.via_index("items", i).via("downwardAPI"));
    }
    errors
}
