//! The rules of CustomResourceDefinition objects themselves, and the kinds they describe.

use std::sync::Arc;

use serde_json::{Value, json};

use super::schema::Structural;
use crate::errors::{FieldError, Status};
use crate::metadata;
use crate::registry::{Column, FieldLabel, Kind, ScalePaths, Scope, Strategy, WriteContext};
use crate::tables;

struct Definitions;

/// The entry of CustomResourceDefinition.
pub(crate) fn kind() -> Kind {
    let mut kind = Kind::new(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        "customresourcedefinitions",
        Scope::Cluster,
    );
    kind.short_names = vec!["crd".into(), "crds".into()];
    kind.categories = vec!["api-extensions".into()];
    kind.has_generation = true;
    kind.has_status = true;
    kind.columns = vec![Column::name_column(), Column::new("Created At", "date", "When the definition was created.")];
    kind.row = Some(Arc::new(|object, _| {
        vec![object["metadata"]["name"].clone(), object["metadata"]["creationTimestamp"].clone()]
    }));
    kind.strategy = Arc::new(Definitions);
    kind
}

/// The kinds a definition serves, one per version.
pub(crate) fn served(definition: &Value) -> Result<Vec<Kind>, String> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let names = &spec["names"];
    let list = |value: &Value| value.as_array().into_iter().flatten().map(|name| text(name).into()).collect();
    let scope = if spec["scope"] == "Cluster" { Scope::Cluster } else { Scope::Namespaced };
    let mut kinds = Vec::new();
    let versions = spec["versions"].as_array().into_iter().flatten();
    for version in versions.filter(|version| version["served"] == true) {
        let mut kind = Kind::new(
            text(&spec["group"]),
            text(&version["name"]),
            text(&names["kind"]),
            text(&names["plural"]),
            scope,
        );
        kind.list_kind = text(&names["listKind"]).into();
        kind.singular = text(&names["singular"]).into();
        kind.short_names = list(&names["shortNames"]);
        kind.categories = list(&names["categories"]);
        kind.has_generation = true;
        kind.custom = true;
        kind.has_status = version.pointer("/subresources/status").is_some_and(Value::is_object);
        kind.scale = version.pointer("/subresources/scale").map(|scale| ScalePaths {
            spec_replicas: pointer(&scale["specReplicasPath"]).into(),
            status_replicas: pointer(&scale["statusReplicasPath"]).into(),
            selector: scale.get("labelSelectorPath").map(|path| pointer(path).into()),
        });
        kind.field_labels = version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|field| {
                let path = text(&field["jsonPath"]);
                FieldLabel {
                    label: path.trim_start_matches('.').to_owned().into(),
                    pointers: vec![pointer(&field["jsonPath"]).into()],
                    default: "".into(),
                }
            })
            .collect();
        let columns = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
        let (columns, row) = tables::custom::columns(columns)?;
        kind.columns = columns;
        kind.row = Some(row);
        kind.schema = Some(Arc::new(Structural::compile(&version["schema"]["openAPIV3Schema"])?));
        kinds.push(kind);
    }
    Ok(kinds)
}

/// `.spec.replicas` as `/spec/replicas`.
fn pointer(path: &Value) -> String {
    path.as_str().unwrap_or_default().replace('.', "/")
}

// === impl Definitions ===

impl Strategy for Definitions {
    fn default(&self, object: &mut Value) {
        let spec = &mut object["spec"];
        if !spec.is_object() {
            return;
        }
        let kind = spec["names"]["kind"].as_str().unwrap_or_default().to_owned();
        let default = |place: &mut Value, text: String| {
            if place.as_str().unwrap_or_default().is_empty() && !text.is_empty() {
                *place = text.into();
            }
        };
        if spec["names"].is_object() {
            default(&mut spec["names"]["singular"], kind.to_lowercase());
            default(
                &mut spec["names"]["listKind"],
                if kind.is_empty() { String::new() } else { format!("{kind}List") },
            );
        }
        if spec["conversion"]["strategy"].is_null() {
            spec["conversion"] = json!({ "strategy": "None" });
        }
    }

    fn prepare_create(&self, _cx: &WriteContext<'_>, object: &mut Value) -> Result<(), Status> {
        object["status"] =
            json!({ "acceptedNames": { "kind": "", "plural": "" }, "conditions": null, "storedVersions": null });
        Ok(())
    }

    fn validate(&self, _cx: &WriteContext<'_>, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let spec = &object["spec"];
        let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
        for (path, value) in [
            ("spec.group", &spec["group"]),
            ("spec.scope", &spec["scope"]),
            ("spec.names.plural", &spec["names"]["plural"]),
            ("spec.names.kind", &spec["names"]["kind"]),
        ] {
            if text(value).is_empty() {
                errors.push(FieldError::required(path, ""));
            }
        }
        let wanted = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
        let name = metadata::name(object);
        if name != wanted {
            errors.push(FieldError::invalid(
                "metadata.name",
                &name.into(),
                "must be spec.names.plural+\".\"+spec.group",
            ));
        }
        if !matches!(spec["scope"].as_str(), None | Some("" | "Cluster" | "Namespaced")) {
            errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
        }
        if spec["conversion"]["strategy"] != "None" {
            errors.push(FieldError::not_supported(
                "spec.conversion.strategy",
                &spec["conversion"]["strategy"],
                &["None"],
            ));
        }
        let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
            errors.push(FieldError::invalid(
                "spec.versions",
                &spec["versions"],
                "must have exactly one version marked as storage version",
            ));
        }
        for (index, version) in versions.iter().enumerate() {
            let path = format!("spec.versions[{index}]");
            let schema = &version["schema"]["openAPIV3Schema"];
            if schema.is_null() {
                errors.push(FieldError::required(format!("{path}.schema.openAPIV3Schema"), "schemas are required"));
            } else if let Err(why) = Structural::compile(schema) {
                errors.push(FieldError::invalid(format!("{path}.schema.openAPIV3Schema"), &Value::Null, &why));
            } else if schema["type"] != "object" {
                errors.push(FieldError::required(
                    format!("{path}.schema.openAPIV3Schema.type"),
                    "must not be empty at the root",
                ));
            }
            let columns = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
            if let Err(why) = tables::custom::columns(columns) {
                errors.push(FieldError::invalid(format!("{path}.additionalPrinterColumns"), &Value::Null, &why));
            }
        }
        if let Some(old) = old {
            for field in ["group", "scope"] {
                if old["spec"][field] != spec[field] {
                    errors.push(FieldError::invalid(format!("spec.{field}"), &spec[field], "field is immutable"));
                }
            }
        }
        errors
    }

    fn delete_returns_object(&self) -> bool {
        true
    }
}
