//! Dispatch over the kinds.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{ConfigSnapshot, Operation, Request, handles, users};
use crate::autoscaling::v1alpha1::PodAutoscaler;
use crate::defaults::{self, Scope};
use crate::field_error::{FieldErrors, Level};
use crate::networking::v1alpha1::IngressSpec;
use crate::serving::v1::{Configuration, ConfigurationSpec, Revision, Route, RouteSpec, Service, ServiceSpec};
use crate::serving::v1beta1::{DomainMapping, DomainMappingSpec};
use crate::validation;

/// Apply the defaults of a creation or update. An error is the denial's text.
pub fn default_object(request: &Request<'_>, object: &mut Value, config: &ConfigSnapshot) -> Result<(), String> {
    if !applies(request) {
        return Ok(());
    }
    let old_spec = match (request.operation, request.old) {
        (Operation::Update, Some(old)) => {
            let mut old = old.clone();
            fill(request, &mut old, None, config).map_err(denied)?;
            Some(old["spec"].take())
        }
        _ => None,
    };
    fill(request, object, request.old, config).map_err(denied)?;
    users::annotate(request, object, old_spec.as_ref());
    Ok(())
}

/// The API server keeps metadata and spec of a status update as stored, so there is nothing to look at; upstream looks all the
/// same, and an object stored under older rules can then no longer be reported on.
fn applies(request: &Request<'_>) -> bool {
    handles(request.group, request.kind)
        && request.operation != Operation::Delete
        && request.subresource != Some("status")
}

fn denied(error: String) -> String {
    format!("mutation failed: cannot decode incoming new object: {error}")
}

/// Check a creation or update; deletions pass. Warnings, one per line, or the denial's text.
pub fn validate_object(request: &Request<'_>, object: &Value, config: &ConfigSnapshot) -> Result<Vec<String>, String> {
    if !applies(request) {
        return Ok(Vec::new());
    }
    let errors = check(request, object, config).map_err(|error| format!("decoding request failed: {error}"))?;
    let denials = errors.only(Level::Error);
    if !denials.is_empty() {
        return Err(format!("validation failed: {denials}"));
    }
    let warnings = errors.only(Level::Warning);
    Ok(if warnings.is_empty() { Vec::new() } else { warnings.to_string().lines().map(str::to_owned).collect() })
}

fn fill(request: &Request<'_>, object: &mut Value, old: Option<&Value>, config: &ConfigSnapshot) -> Result<(), String> {
    let scope = Scope {
        create: request.operation == Operation::Create,
        old_template_name: old
            .filter(|_| request.operation == Operation::Update)
            .and_then(|old| old["spec"]["template"]["metadata"]["name"].as_str()),
    };
    match request.kind {
        "Service" => {
            let mut typed = Service { metadata: meta(object), spec: spec(object)?, status: None };
            defaults::service(&mut typed, config, scope);
            put_spec(object, &typed.spec)
        }
        "Configuration" => {
            let mut typed = Configuration { metadata: meta(object), spec: spec(object)?, status: None };
            defaults::configuration(&mut typed, config, scope);
            put_spec(object, &typed.spec)
        }
        "Route" => {
            let mut typed = Route { metadata: meta(object), spec: spec(object)?, status: None };
            defaults::route(&mut typed);
            put_spec(object, &typed.spec)
        }
        "Revision" if scope.create => {
            let mut typed = Revision { metadata: meta(object), spec: spec(object)?, status: None };
            defaults::revision(&mut typed, config, scope);
            put_spec(object, &typed.spec)
        }
        "DomainMapping" => {
            let mut typed = DomainMapping { metadata: meta(object), spec: spec(object)?, status: None };
            if typed.metadata.namespace.is_none() {
                typed.metadata.namespace = Some(request.namespace.to_owned());
            }
            defaults::domain_mapping(&mut typed);
            put_spec(object, &typed.spec)
        }
        "PodAutoscaler" => {
            let mut typed = PodAutoscaler { metadata: meta(object), ..PodAutoscaler::default() };
            defaults::pod_autoscaler(&mut typed, config);
            let annotations = users::annotations_mut(object);
            for (key, value) in typed.metadata.annotations.into_iter().flatten() {
                annotations.entry(key).or_insert_with(|| value.into());
            }
            Ok(())
        }
        "Ingress" => {
            let mut typed: IngressSpec = spec(object)?;
            defaults::ingress(&mut typed);
            put_spec(object, &typed)
        }
        _ => Ok(()),
    }
}

fn check(request: &Request<'_>, object: &Value, config: &ConfigSnapshot) -> Result<FieldErrors, String> {
    let update = request.operation == Operation::Update;
    let old = request.old.filter(|_| update);
    let create = request.operation == Operation::Create;
    let metadata = meta(object);
    let namespace = metadata.namespace.clone().unwrap_or_else(|| request.namespace.to_owned());
    let mut errors = FieldErrors::none();
    match request.kind {
        "Service" => {
            let typed: ServiceSpec = spec(object)?;
            errors.add(validation::metadata::object(&metadata, false));
            errors.add(validation::metadata::rollout_duration(&metadata));
            errors.add(validation::service_spec(&typed, &metadata, config).via("spec"));
            errors.add(template_name(object, old)?);
        }
        "Configuration" => {
            let typed: ConfigurationSpec = spec(object)?;
            errors.add(validation::metadata::object(&metadata, false));
            errors.add(validation::metadata::owned_by_service(&metadata));
            errors.add(validation::template(&typed.template, &metadata, config).via("template").via("spec"));
            errors.add(template_name(object, old)?);
        }
        "Route" => {
            let typed: RouteSpec = spec(object)?;
            errors.add(validation::metadata::object(&metadata, false));
            errors.add(validation::metadata::owned_by_service(&metadata));
            errors.add(validation::metadata::rollout_duration(&metadata));
            errors.add(validation::traffic(&typed.traffic, false).via("spec"));
        }
        "Revision" => {
            if let Some(old) = old.filter(|old| !validation::same(&old["spec"], &object["spec"])) {
                let details = validation::diff("{v1.RevisionSpec}", &old["spec"], &object["spec"]);
                return Ok(FieldErrors::new("Immutable fields changed (-old +new)", &["spec"]).with_details(details));
            }
            errors.add(validation::metadata::object(&metadata, true));
            errors.add(validation::metadata::owned_by_configuration(&metadata));
            errors.add(validation::autoscaling_annotations(&metadata, config));
            if create {
                errors.add(validation::revision_spec(&spec(object)?, config).via("spec"));
            }
        }
        "DomainMapping" => {
            let typed: DomainMappingSpec = spec(object)?;
            errors.add(validation::domain_mapping(&metadata, &typed, &namespace, config));
        }
        "PodAutoscaler" => {
            errors.add(validation::metadata::object(&metadata, true));
            errors.add(validation::autoscaling_annotations(&metadata, config));
            errors.add(validation::internal::pod_autoscaler(&object["spec"], config));
        }
        "Metric" => {
            errors.add(validation::metadata::object(&metadata, true));
            errors.add(validation::autoscaling_annotations(&metadata, config));
            errors.add(validation::internal::metric(&object["spec"]));
        }
        "ServerlessService" => {
            errors.add(validation::internal::serverless_service(&metadata, &object["spec"]));
        }
        "Ingress" => errors.add(validation::internal::ingress(&object["spec"], &namespace)),
        "Certificate" => errors.add(validation::internal::certificate(&object["spec"])),
        _ => {}
    }
    if let Some(old) = old.filter(|_| users::applies(request.kind, object)) {
        errors.add(users::validate(object, old));
    }
    Ok(errors)
}

/// A named template may only change together with its name.
fn template_name(object: &Value, old: Option<&Value>) -> Result<FieldErrors, String> {
    let Some(old) = old else { return Ok(FieldErrors::none()) };
    let (old, new) = (&old["spec"]["template"], &object["spec"]["template"]);
    let name = |template: &Value| template["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if name(new).is_empty() || name(new) != name(old) || validation::same(old, new) {
        return Ok(FieldErrors::none());
    }
    let details = validation::diff("{*v1.RevisionTemplateSpec}", old, new);
    Ok(FieldErrors::new(
        "Saw the following changes without a name change (-old +new)",
        &["spec.template.metadata.name"],
    )
    .with_details(details))
}

fn meta(object: &Value) -> ObjectMeta {
    // Only the parts looked at; anything malformed is the API server's to refuse.
    let mut picked = json!({});
    for key in ["name", "generateName", "namespace", "labels", "annotations", "ownerReferences", "uid"] {
        if let Some(value) = object["metadata"].get(key).filter(|v| !v.is_null()) {
            picked[key] = value.clone();
        }
    }
    serde_json::from_value(picked).unwrap_or_default()
}

fn spec<T: DeserializeOwned + Default>(object: &Value) -> Result<T, String> {
    match &object["spec"] {
        Value::Null => Ok(T::default()),
        spec => serde_json::from_value(spec.clone()).map_err(|error| format!("spec: {error}")),
    }
}

fn put_spec<T: Serialize>(object: &mut Value, spec: &T) -> Result<(), String> {
    object["spec"] = serde_json::to_value(spec).map_err(|error| format!("spec: {error}"))?;
    Ok(())
}
