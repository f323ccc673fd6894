//! How objects end.
//!
//! Without finalizers an object is gone at once. Finalizers, foreground and orphan propagation, a grace period (pods) and the content of a
//! namespace keep it, marked with a deletionTimestamp, until whoever is responsible has removed what holds it. Dependents are the garbage
//! collector's; here the propagation policy only becomes a finalizer.

use serde_json::{Value, json};
use store::{Change, Expected};

use crate::admission::Operation;
use crate::core::{Call, Core, Written};
use crate::errors::Status;
use crate::metadata;
use crate::pipeline::{admission_request, bump_generation};

const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// The body of a DELETE.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace: Option<i64>,
    pub(crate) propagation: Option<Propagation>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) dry_run: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

// === impl DeleteOptions ===

impl DeleteOptions {
    pub(crate) fn parse(body: &Value, query: &crate::request::Query) -> Result<Self, Status> {
        let policy = body["propagationPolicy"]
            .as_str()
            .filter(|policy| !policy.is_empty())
            .unwrap_or_else(|| query.get("propagationPolicy"));
        let propagation = match policy {
            "" => match body["orphanDependents"].as_bool() {
                Some(true) => Some(Propagation::Orphan),
                Some(false) => Some(Propagation::Background),
                None => None,
            },
            "Background" => Some(Propagation::Background),
            "Foreground" => Some(Propagation::Foreground),
            "Orphan" => Some(Propagation::Orphan),
            other => {
                let supported = ["Background", "Foreground", "Orphan", ""];
                let error = crate::FieldError::not_supported("propagationPolicy", &other.into(), &supported);
                return Err(Status::invalid_options("DeleteOptions", &[error]));
            }
        };
        let precondition = |name: &str| body["preconditions"][name].as_str().map(str::to_owned);
        Ok(Self {
            grace: body["gracePeriodSeconds"].as_i64().or(query.number("gracePeriodSeconds")?),
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run: body["dryRun"].as_array().is_some_and(|list| list.iter().any(|one| one == "All")),
        })
    }
}

// === impl Core ===

impl Core {
    pub(crate) fn delete(&self, call: &Call, options: &DeleteOptions) -> Result<Written, Status> {
        let kind = &*call.kind;
        loop {
            let old = self.get(call)?;
            self.check_delete(call, options, &old.value)?;
            let mut warnings = Vec::new();
            let request = admission_request(call, Operation::Delete, &call.name, Some(&old.value));
            for one in &self.admission {
                warnings.extend(one.validate(&request, &old.value)?);
            }
            let dry_run = call.dry_run || options.dry_run;
            let expected = Expected::Revision(old.revision);
            let observe = |old: Option<&Value>, new: Option<&Value>| kind.strategy.observe(old, new);
            let Some(marked) = marked(call, options, &old.value) else {
                if dry_run {
                    return Ok(Written::computed(self.deleted(call, &old.value), None, warnings));
                }
                match self.store.commit(&kind.storage, &call.key(), expected, Change::Delete, &observe) {
                    Ok(last) => {
                        let answer = self.deleted(call, &last.value);
                        return Ok(Written::computed(answer, Some(last.revision), warnings));
                    }
                    Err(_) => continue,
                }
            };
            if marked == *old.value {
                return Ok(Written::unchanged(old, warnings));
            }
            if dry_run {
                return Ok(Written::computed(marked, None, warnings));
            }
            if let Ok(stored) = self.store.commit(&kind.storage, &call.key(), expected, Change::Put(marked), &observe) {
                return Ok(Written::stored(stored, warnings));
            }
        }
    }

    fn check_delete(&self, call: &Call, options: &DeleteOptions, old: &Value) -> Result<(), Status> {
        for (what, short, wanted, found) in [
            ("UID", "UID", &options.uid, metadata::uid(old)),
            ("ResourceVersion", "ResourceVersion", &options.resource_version, metadata::resource_version(old)),
        ] {
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
                let why =
                    format!("Precondition failed: {what} in precondition: {wanted}, {short} in object meta: {found}");
                return Err(Status::conflict(&call.kind, &call.name, &why));
            }
        }
        if call.kind.storage == "namespaces" && matches!(&*call.name, "default" | "kube-system" | "kube-public") {
            return Err(Status::forbidden(&call.kind, &call.name, "this namespace may not be deleted"));
        }
        Ok(())
    }

    /// What a finished deletion answers.
    fn deleted(&self, call: &Call, last: &Value) -> Value {
        if call.kind.strategy.delete_returns_object() {
            return last.clone();
        }
        let mut details = json!({ "name": call.name, "kind": &*call.kind.plural, "uid": metadata::uid(last) });
        if !call.kind.group.is_empty() {
            details["group"] = (&*call.kind.group).into();
        }
        json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
    }
}

/// The object with its deletion marks, or None when nothing keeps it.
fn marked(call: &Call, options: &DeleteOptions, old: &Value) -> Option<Value> {
    let kind = &*call.kind;
    let mut finalizers: Vec<String> = metadata::finalizers(old).into_iter().map(str::to_owned).collect();
    if let Some(policy) = options.propagation {
        finalizers.retain(|one| one != FOREGROUND && one != ORPHAN);
        match policy {
            Propagation::Background => {}
            Propagation::Foreground => finalizers.push(FOREGROUND.to_owned()),
            Propagation::Orphan => finalizers.push(ORPHAN.to_owned()),
        }
    }
    if kind.storage == crate::crd::STORAGE && !finalizers.iter().any(|one| one == crate::crd::FINALIZER) {
        finalizers.push(crate::crd::FINALIZER.to_owned());
    }
    let grace = kind.strategy.deletion_grace(old, options.grace).unwrap_or_default();
    let content = kind.storage == "namespaces"
        && old.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if finalizers.is_empty() && grace == 0 && !content {
        return None;
    }
    let mut object = old.clone();
    metadata::set_finalizers(&mut object, &finalizers);
    let before = old.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if !metadata::deleting(old) {
        let fields = metadata::fields(&mut object);
        let at = call.now + jiff::SignedDuration::from_secs(grace);
        fields.insert("deletionTimestamp".into(), metadata::timestamp(at).into());
        fields.insert("deletionGracePeriodSeconds".into(), grace.into());
        if kind.has_generation {
            bump_generation(&mut object);
        }
    } else if before.is_some_and(|before| grace < before) {
        // A shorter grace period counts from the first request.
        let fields = metadata::fields(&mut object);
        let first: Option<jiff::Timestamp> = metadata::text(old, "/metadata/deletionTimestamp").parse().ok();
        if let (Some(first), Some(before)) = (first, before) {
            let at = first - jiff::SignedDuration::from_secs(before - grace);
            fields.insert("deletionTimestamp".into(), metadata::timestamp(at).into());
        }
        fields.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if kind.storage == "namespaces" {
        object["status"]["phase"] = "Terminating".into();
    }
    Some(object)
}
