//! The one way objects are written.
//!
//! load the latest -> apply the change -> identity and preconditions -> prune and default -> strategy -> mutating admission -> prune and default ->
//! validate -> validating admission -> no-op check and generation -> commit, or again when somebody else was faster. Create, update, every
//! patch type, status, scale and finalize differ only in the change. Everything here is synchronous: the store is memory.

mod identity;
mod version;

use serde_json::Value;
use store::{Change, Expected};

pub(crate) use self::identity::bump_generation;
use self::identity::{
    check_place, check_preconditions, check_type, ends_with_update, exists, keep_the_rest, spec_differs, start_metadata,
};
use self::version::to_stored;
pub(crate) use self::version::{in_version, shown_as_stored};

use crate::admission::{AdmissionRequest, Operation};
use crate::core::{Call, Core, FieldValidation, Written};
use crate::errors::{FieldError, Status};
use crate::kinds;
use crate::metadata;
use crate::registry::Kind;

/// Names are drawn again this often when a generated one is taken.
const GENERATE_ATTEMPTS: usize = 8;

/// Makes the wanted object from the present one (for `/scale`: from and to a Scale).
pub(crate) type ChangeFn<'a> = &'a dyn Fn(&Value) -> Result<Value, Status>;

/// How a body may be refused for unknown fields: as a whole on create and update, as a patch otherwise.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Object { duplicates: &'a [String] },
    Patch { body: &'a [u8] },
}

// === impl Core ===

impl Core {
    pub(crate) fn create(&self, call: &Call, mut object: Value, duplicates: &[String]) -> Result<Written, Status> {
        let kind = &*call.kind;
        check_type(kind, &mut object)?;
        if !metadata::resource_version(&object).is_empty() {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Status::new(http::StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message));
        }
        check_place(call, &object)?;
        if !kind.custom {
            metadata::drop_nulls(&mut object);
        }
        let mut warnings = Vec::new();
        self.shape(call, &mut object, Source::Object { duplicates }, &mut warnings)?;
        to_stored(kind, &mut object);
        let prefix = metadata::text(&object, "/metadata/generateName").to_owned();
        let generated = metadata::name(&object).is_empty() && !prefix.is_empty();
        for attempt in 1.. {
            let mut object = object.clone();
            if generated {
                metadata::fields(&mut object).insert("name".into(), metadata::generate_name(&prefix).into());
            }
            match self.create_named(call, object, warnings.clone()) {
                Err(status) if generated && status.reason == "AlreadyExists" && attempt < GENERATE_ATTEMPTS => {}
                outcome => return outcome,
            }
        }
        Err(Status::internal("no free generated name"))
    }

    fn create_named(&self, call: &Call, mut object: Value, mut warnings: Vec<String>) -> Result<Written, Status> {
        let kind = &*call.kind;
        let name = metadata::name(&object).to_owned();
        self.check_namespace(call, &name)?;
        let key = store::Key::new(&*call.namespace, &*name);
        if let Some(found) = self.store.get(&kind.storage, &key) {
            return Err(exists(kind, &name, &found));
        }
        start_metadata(call, &mut object);
        if kind.has_status {
            object.as_object_mut().map(|fields| fields.remove("status"));
        }
        self.with_context(call, &name, |context| {
            kind.strategy.default(&mut object);
            kind.strategy.prepare_create(context, &mut object)
        })?;
        self.admit(call, Operation::Create, &name, &mut object, None)?;
        warnings.extend(self.check(call, Operation::Create, &name, &object, None)?);
        if call.dry_run {
            return Ok(Written::computed(object, None, warnings));
        }
        let observe = |old: Option<&Value>, new: Option<&Value>| kind.strategy.observe(old, new);
        match self.store.commit(&kind.storage, &key, Expected::Absent, Change::Put(object), &observe) {
            Ok(stored) => Ok(Written::stored(stored, warnings)),
            Err(error) => match error.found {
                Some(found) => Err(exists(kind, &name, &found)),
                None => Err(Status::internal(error)),
            },
        }
    }

    /// Every write to an object that exists.
    pub(crate) fn modify(&self, call: &Call, change: ChangeFn<'_>, source: Source<'_>) -> Result<Written, Status> {
        let kind = &*call.kind;
        loop {
            let old = self.get(call)?;
            let mut object = change(&in_version(kind, &old.value))?;
            check_type(kind, &mut object)?;
            check_place(call, &object)?;
            check_preconditions(call, &old, &object, &source)?;
            if !kind.custom {
                metadata::drop_nulls(&mut object);
            }
            let mut warnings = Vec::new();
            metadata::restore(&mut object, &old.value);
            self.shape(call, &mut object, source, &mut warnings)?;
            to_stored(kind, &mut object);
            object["apiVersion"] = old.value["apiVersion"].clone();
            keep_the_rest(call, &mut object, &old.value);
            if object == *old.value {
                return Ok(Written::unchanged(old, warnings));
            }
            self.with_context(call, &call.name, |context| {
                kind.strategy.default(&mut object);
                kind.strategy.prepare_update(context, &mut object, &old.value)
            })?;
            if call.subresource != "scale" {
                self.admit(call, Operation::Update, &call.name, &mut object, Some(&old.value))?;
            }
            metadata::restore(&mut object, &old.value);
            if object == *old.value {
                return Ok(Written::unchanged(old, warnings));
            }
            warnings.extend(self.check(call, Operation::Update, &call.name, &object, Some(&old.value))?);
            if kind.has_generation && spec_differs(kind, &object, &old.value) {
                bump_generation(&mut object);
            }
            let gone = ends_with_update(kind, &object, &old.value);
            if call.dry_run {
                return Ok(Written::computed(object, None, warnings));
            }
            let observe = |old: Option<&Value>, new: Option<&Value>| kind.strategy.observe(old, new);
            let expected = Expected::Revision(old.revision);
            let (change, last) = if gone { (Change::Delete, Some(object)) } else { (Change::Put(object), None) };
            match self.store.commit(&kind.storage, &call.key(), expected, change, &observe) {
                Ok(stored) => match last {
                    Some(last) => return Ok(Written::computed(last, Some(stored.revision), warnings)),
                    None => return Ok(Written::stored(stored, warnings)),
                },
                // Somebody was faster: the change sees the new object, and a precondition of the caller fails there.
                Err(_) => continue,
            }
        }
    }

    /// Removes and reports unknown fields, and sets defaults.
    fn shape(
        &self,
        call: &Call,
        object: &mut Value,
        source: Source<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<(), Status> {
        let kind = &*call.kind;
        let mut found: Vec<String> = Vec::new();
        if let Some(schema) = &kind.schema {
            let unknown = schema.conform(object).map_err(Status::bad_request)?;
            found.extend(unknown.iter().map(|field| format!("unknown field {field:?}")));
        }
        if let Source::Object { duplicates } = source {
            found.extend(duplicates.iter().map(|field| format!("duplicate field {field:?}")));
        }
        if !found.is_empty() && call.subresource.is_empty() {
            match (call.fields, source) {
                (FieldValidation::Ignore, _) => {}
                (FieldValidation::Warn, _) => warnings.extend(found),
                (FieldValidation::Strict, Source::Object { .. }) => {
                    return Err(Status::bad_request(format!(
                        "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                        kind.kind,
                        kind.version,
                        kind.kind,
                        found.join(", ")
                    )));
                }
                (FieldValidation::Strict, Source::Patch { body }) => {
                    let detail = format!("strict decoding error: {}", found.join(", "));
                    let error = FieldError::invalid("patch", &String::from_utf8_lossy(body).into(), &detail);
                    return Err(Status::invalid(kind, "", &[error]));
                }
            }
        }
        if let Some(schema) = &kind.schema {
            schema.default(object);
        }
        Ok(())
    }

    fn admit(
        &self,
        call: &Call,
        operation: Operation,
        name: &str,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        if self.admission.is_empty() {
            return Ok(());
        }
        let request = admission_request(call, operation, name, old);
        for one in &self.admission {
            one.mutate(&request, object)?;
        }
        // What runs in this process knows the built-in types; a custom resource may have been given anything.
        if let Some(schema) = call.kind.schema.as_ref().filter(|_| call.kind.custom) {
            schema.unknown_fields(object, true);
            schema.default(object);
        }
        call.kind.strategy.default(object);
        Ok(())
    }

    fn check(
        &self,
        call: &Call,
        operation: Operation,
        name: &str,
        object: &Value,
        old: Option<&Value>,
    ) -> Result<Vec<String>, Status> {
        let kind = &*call.kind;
        let mut errors = metadata::validate(object);
        if old.is_none() {
            let valid = kinds::name_format(kind).check(name);
            errors.extend(valid.err().map(|why| FieldError::invalid("metadata.name", &name.into(), &why)));
        }
        if let Some(old) = old.filter(|old| metadata::deleting(old)) {
            let before = metadata::finalizers(old);
            let added: Vec<&str> =
                metadata::finalizers(object).into_iter().filter(|one| !before.contains(one)).collect();
            if !added.is_empty() {
                let detail = format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                );
                errors.push(FieldError::forbidden("metadata.finalizers", &detail));
            }
        }
        if let Some(schema) = &kind.schema {
            errors.extend(schema.validate(object));
        }
        errors.extend(self.with_context(call, name, |context| kind.strategy.validate(context, object, old)));
        if !errors.is_empty() {
            return Err(Status::invalid(kind, name, &errors));
        }
        let mut warnings = Vec::new();
        if call.subresource != "scale" {
            let request = admission_request(call, operation, name, old);
            for one in &self.admission {
                warnings.extend(one.validate(&request, object)?);
            }
        }
        Ok(warnings)
    }

    fn check_namespace(&self, call: &Call, name: &str) -> Result<(), Status> {
        if !call.kind.namespaced() {
            return Ok(());
        }
        let Some(namespace) = self.store.get("namespaces", &store::Key::new("", &*call.namespace)) else {
            let namespaces = Kind::new("", "v1", "Namespace", "namespaces", crate::registry::Scope::Cluster);
            return Err(Status::not_found(&namespaces, &call.namespace));
        };
        if metadata::deleting(&namespace.value) {
            return Err(Status::namespace_terminating(&call.kind, name, &call.namespace));
        }
        Ok(())
    }
}

pub(crate) fn admission_request<'a>(
    call: &'a Call,
    operation: Operation,
    name: &'a str,
    old: Option<&'a Value>,
) -> AdmissionRequest<'a> {
    AdmissionRequest {
        operation,
        group: &call.kind.group,
        version: &call.kind.version,
        resource: &call.kind.plural,
        kind: &call.kind.kind,
        namespace: &call.namespace,
        name,
        subresource: &call.subresource,
        user: &call.identity.user,
        old,
        dry_run: call.dry_run,
    }
}
