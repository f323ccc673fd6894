//! Custom resource definitions: objects that add kinds to the table while the server runs.
//!
//! A definition is accepted and its kinds are served before the request that created it is answered, so a client that waits for Established never
//! waits. Deleting one first deletes its objects; when the last of them is gone (finalizers may take their time) the definition follows.

mod check;
mod definition;
mod schema;

pub(crate) use definition::kind;

use serde_json::{Value, json};
use store::{Key, Object};

use crate::core::{Call, Core, Written};
use crate::delete::DeleteOptions;
use crate::errors::Status;
use crate::metadata;
use crate::pipeline::Source;
use crate::registry::{Kind, Registry};

pub(crate) const STORAGE: &str = "apiextensions.k8s.io/customresourcedefinitions";
pub(crate) const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

// === impl Core ===

impl Core {
    /// Follows up on a write: definitions change the table, and the last object of a kind may let its definition go.
    pub(crate) fn after_write(&self, call: &Call, written: &Written) {
        if written.revision.is_none() {
            return;
        }
        let name = metadata::name(written.answer.value()).to_owned();
        let outcome = if call.kind.storage == STORAGE {
            let name = if call.name.is_empty() { &name } else { &call.name };
            self.definition_changed(name)
        } else if call.kind.custom && self.store.count(&call.kind.storage) == 0 {
            self.clean_up(&format!("{}.{}", call.kind.plural, call.kind.group))
        } else {
            Ok(())
        };
        if let Err(error) = outcome {
            tracing::warn!(resource = call.kind.resource(), %error, "cannot follow up on the change of a custom resource definition");
        }
    }

    /// Serves what the stored definitions define; at start.
    pub(crate) fn register_stored(&self) {
        for definition in self.store.list(STORAGE, None).objects {
            if let Err(error) = self.definition_changed(&definition.key.name) {
                tracing::error!(definition = definition.key.name, %error, "cannot serve a stored custom resource definition");
            }
        }
    }

    fn definition_changed(&self, name: &str) -> Result<(), Status> {
        let Some(definition) = self.store.get(STORAGE, &Key::new("", name)) else {
            self.withdraw(name);
            return Ok(());
        };
        if metadata::deleting(&definition.value) {
            self.serve(&definition, true)?;
            return self.clean_up(name);
        }
        let conflict = conflict(&self.kinds.load(), &definition.value);
        if conflict.is_none() {
            self.serve(&definition, false)?;
        }
        self.report(name, conflict.as_deref())
    }

    /// Puts the served versions into the table and takes the others out.
    fn serve(&self, definition: &Object, terminating: bool) -> Result<(), Status> {
        let mut kinds = definition::served(&definition.value)
            .map_err(|why| Status::internal(format!("the definition {} is unusable: {why}", definition.key)))?;
        if terminating {
            kinds.iter_mut().for_each(|kind| kind.verbs.retain(|verb| verb != "create"));
        }
        let names: Vec<(String, String, String)> = kinds
            .iter()
            .map(|kind| (kind.group.to_string(), kind.plural.to_string(), kind.version.to_string()))
            .collect();
        self.kinds.register(kinds);
        self.kinds.retain(|kind| {
            let same = |(group, plural, _): &&(String, String, String)| *group == kind.group && *plural == kind.plural;
            let served = names.iter().any(|one| same(&one) && one.2 == kind.version);
            !kind.custom || served || !names.iter().any(|one| same(&one))
        });
        Ok(())
    }

    fn withdraw(&self, name: &str) {
        let (plural, group) = name.split_once('.').unwrap_or((name, ""));
        self.kinds.retain(|kind| !(kind.custom && kind.group == group && kind.plural == plural));
        self.store.drop_watchers(&format!("{group}/{plural}"));
    }

    /// Writes the conditions.
    fn report(&self, name: &str, conflict: Option<&str>) -> Result<(), Status> {
        let registry = self.kinds.load();
        let Some(kind) = registry.by_kind("apiextensions.k8s.io/v1", "CustomResourceDefinition") else { return Ok(()) };
        let mut call = self.administrator_call(kind, "", name);
        call.subresource = "status".to_owned();
        let now = metadata::timestamp(call.now);
        let accept = |definition: &Value| {
            let mut next = definition.clone();
            let stored = definition["spec"]["versions"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|version| version["storage"] == true);
            let mut versions: Vec<Value> =
                definition["status"]["storedVersions"].as_array().cloned().unwrap_or_default();
            if let Some(stored) = stored.map(|version| version["name"].clone()).filter(|name| !versions.contains(name))
            {
                versions.push(stored);
            }
            let (names, established) = match conflict {
                None => (
                    json!({"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found"}),
                    json!({"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "message": "the initial names have been accepted"}),
                ),
                Some(why) => (
                    json!({"type": "NamesAccepted", "status": "False", "reason": "ListKindConflict", "message": why}),
                    json!({"type": "Established", "status": "False", "reason": "NotAccepted", "message": "not all names are accepted"}),
                ),
            };
            let before = definition["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let since = |mut condition: Value| {
                let same =
                    before.iter().find(|one| one["type"] == condition["type"] && one["status"] == condition["status"]);
                condition["lastTransitionTime"] =
                    same.map_or_else(|| now.as_str().into(), |one| one["lastTransitionTime"].clone());
                condition
            };
            next["status"] = json!({ "conditions": [since(names), since(established)], "storedVersions": versions });
            if conflict.is_none() {
                next["status"]["acceptedNames"] = definition["spec"]["names"].clone();
            }
            Ok(next)
        };
        self.modify(&call, &accept, Source::Patch { body: b"" }).map(drop)
    }

    /// Deletes the objects of a terminating definition, then lets the definition go.
    fn clean_up(&self, name: &str) -> Result<(), Status> {
        let Some(definition) = self.store.get(STORAGE, &Key::new("", name)) else { return Ok(()) };
        if !metadata::deleting(&definition.value) {
            return Ok(());
        }
        let registry = self.kinds.load();
        let group = metadata::text(&definition.value, "/spec/group");
        let plural = metadata::text(&definition.value, "/spec/names/plural");
        if let Some(kind) =
            registry.kinds().iter().find(|kind| kind.custom && kind.group == group && kind.plural == plural)
        {
            for object in self.store.list(&kind.storage, None).objects {
                let call = self.administrator_call(kind, &object.key.namespace, &object.key.name);
                match self.delete(&call, &DeleteOptions::default()) {
                    Err(status) if status.reason != "NotFound" => return Err(status),
                    _ => {}
                }
            }
            if self.store.count(&kind.storage) > 0 {
                return Ok(());
            }
        }
        let Some(kind) = registry.by_kind("apiextensions.k8s.io/v1", "CustomResourceDefinition") else { return Ok(()) };
        let call = self.administrator_call(kind, "", name);
        let release = |definition: &Value| {
            let mut next = definition.clone();
            let left: Vec<String> = metadata::finalizers(definition)
                .into_iter()
                .filter(|one| *one != FINALIZER)
                .map(str::to_owned)
                .collect();
            metadata::set_finalizers(&mut next, &left);
            Ok(next)
        };
        match self.modify(&call, &release, Source::Patch { body: b"" }) {
            Err(status) if status.reason != "NotFound" => return Err(status),
            _ => {}
        }
        if self.store.get(STORAGE, &Key::new("", name)).is_none() {
            self.withdraw(name);
        }
        Ok(())
    }
}

/// A name of the definition that another kind of its group already has.
fn conflict(registry: &Registry, definition: &Value) -> Option<String> {
    let spec = &definition["spec"];
    let (group, plural) = (spec["group"].as_str()?, spec["names"]["plural"].as_str()?);
    let others: Vec<&Kind> = registry
        .kinds()
        .iter()
        .map(|kind| &**kind)
        .filter(|kind| kind.group == group && kind.plural != plural)
        .collect();
    for field in ["kind", "listKind", "singular", "plural"] {
        let name = spec["names"][field].as_str().unwrap_or_default();
        let taken = others.iter().any(|other| match field {
            "kind" => other.kind == name,
            "listKind" => other.list_kind == name,
            _ => other.singular == name || other.plural == name,
        });
        if taken {
            return Some(format!("{name:?} is already in use"));
        }
    }
    None
}
