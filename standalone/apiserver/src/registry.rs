//! The table of resources: one [`Kind`] per group, version and plural.
//!
//! Discovery, OpenAPI, Table output, routing and the write pipeline are functions of this table, so a custom resource registered at run time and
//! a kind compiled in are treated alike. A [`Registry`] is an immutable snapshot; [`Kinds`] swaps it atomically when definitions come and go, and
//! a request works on the snapshot it started with.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;

use crate::errors::{FieldError, Status};

/// Names are mostly literals of built-in kinds, and strings for custom resources.
pub type Name = Cow<'static, str>;

/// Makes the cells of one row, in the order of the columns, from an object and the present time.
pub type RowFn = Arc<dyn Fn(&Value, jiff::Timestamp) -> Vec<Value> + Send + Sync>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// One resource of one group version.
#[derive(Clone)]
pub struct Kind {
    /// Empty for core.
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub list_kind: Name,
    pub plural: Name,
    pub singular: Name,
    pub short_names: Vec<Name>,
    pub categories: Vec<Name>,
    pub scope: Scope,
    /// What discovery lists; a verb that is absent answers 405.
    pub verbs: Vec<Name>,
    /// Where the objects live: versions of one kind, and kinds that are two views of one thing (events), share it.
    pub storage: Name,
    /// metadata.generation is kept and bumped.
    pub has_generation: bool,
    /// `/status` exists: the main path ignores status, `/status` ignores everything else.
    pub has_status: bool,
    /// `/scale` exists.
    pub scale: Option<ScalePaths>,
    /// Further subresources for discovery and routing (binding, eviction, log, finalize, token, ...).
    pub subresources: Vec<Subresource>,
    /// Selectable fields beside metadata.name and metadata.namespace.
    pub field_labels: Vec<FieldLabel>,
    /// Table columns, the name column first. Empty: Name and Age.
    pub columns: Vec<Column>,
    /// Cells for `columns`; without it, Name and Age.
    pub row: Option<RowFn>,
    /// Lists of this kind in a strategic merge patch, by the path of field names from the root (list indexes left out). None: 415 as for CRs.
    pub strategic: Option<fn(&[&str]) -> ListStrategy>,
    /// Unknown fields, defaults, types and the OpenAPI schema.
    pub schema: Option<Arc<dyn Schema>>,
    pub strategy: Arc<dyn Strategy>,
    /// This version is not the one that is stored: how its objects are turned into the stored form and back.
    pub convert: Option<Conversion>,
    /// From a custom resource definition: list items carry kind and apiVersion, PUT needs a resourceVersion.
    pub custom: bool,
}

/// Between one version of a kind and the stored one; metadata stays, apiVersion and kind are part of the conversion.
#[derive(Clone, Copy)]
pub struct Conversion {
    pub to_stored: fn(&mut Value),
    pub from_stored: fn(&mut Value),
}

/// JSON pointers into an object.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// `/spec/replicas`
    pub spec_replicas: Name,
    /// `/status/replicas`
    pub status_replicas: Name,
    /// A serialised selector (CRDs) or a LabelSelector object (built-ins); `/spec/selector`.
    pub selector: Option<Name>,
}

#[derive(Clone, Debug)]
pub struct Subresource {
    pub name: Name,
    /// Group, version and kind of what is sent and answered.
    pub group: Name,
    pub version: Name,
    pub kind: Name,
    pub verbs: Vec<Name>,
}

/// A field that field selectors may name.
#[derive(Clone, Debug)]
pub struct FieldLabel {
    pub label: Name,
    /// JSON pointers; the first that holds a non-empty value wins.
    pub pointers: Vec<Name>,
    /// The value when none does ("" mostly, "false" for booleans).
    pub default: Name,
}

#[derive(Clone, Debug)]
pub struct Column {
    pub name: Name,
    /// string, integer, number, boolean, date
    pub kind: Name,
    pub format: Name,
    pub description: Name,
    /// 0 is always shown, above only with `-o wide`.
    pub priority: i32,
}

/// How a list takes part in a strategic merge patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListStrategy {
    /// Replaced as a whole.
    Atomic,
    /// Objects merged by the value of this key.
    Merge(&'static str),
    /// Scalars, united.
    Set,
}

/// Finds an object by storage, namespace and name.
pub type Lookup<'a> = dyn Fn(&str, &str, &str) -> Option<Arc<Value>> + Send + Sync + 'a;

/// What a write knows besides the object.
pub struct WriteContext<'a> {
    pub kind: &'a Kind,
    pub namespace: &'a str,
    pub name: &'a str,
    /// "" for the main path, else "status", "scale", "finalize", ...
    pub subresource: &'a str,
    pub user: &'a str,
    pub groups: &'a [String],
    pub dry_run: bool,
    pub now: jiff::Timestamp,
    /// The live object of (storage, namespace, name); namespace is "" for cluster scope.
    pub lookup: &'a Lookup<'a>,
}

/// The rules of one kind. The pipeline has already done metadata, the split of spec and status, generation and the no-op check.
/// Objects are complete (apiVersion, kind, metadata). Every hook may run more than once for one request (conflict retry).
pub trait Strategy: Send + Sync {
    /// Version defaults (what upstream's `SetDefaults_X` does): on create and on every update, before the hooks and admission and after it.
    fn default(&self, _object: &mut Value) {}
    /// Drop what a client may not set, allocate, convert (stringData). Called on create before validation, after the defaults.
    fn prepare_create(&self, _cx: &WriteContext<'_>, _object: &mut Value) -> Result<(), Status> {
        Ok(())
    }
    /// The same for updates; carry over what an update may leave out (clusterIP).
    fn prepare_update(&self, _cx: &WriteContext<'_>, _object: &mut Value, _old: &Value) -> Result<(), Status> {
        Ok(())
    }
    /// `old` is None on create. Field errors become one 422.
    fn validate(&self, _cx: &WriteContext<'_>, _object: &Value, _old: Option<&Value>) -> Vec<FieldError> {
        Vec::new()
    }
    /// Seconds between a DELETE and the end of the object, when somebody has to stop something first (pods). None: at once.
    fn deletion_grace(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }
    /// The kinds whose DELETE answers with the object instead of a Status.
    fn delete_returns_object(&self) -> bool {
        false
    }
    /// Kinds that are questions (reviews): the answer to a POST, instead of storing anything.
    fn answer(&self, _cx: &WriteContext<'_>, _object: &Value) -> Option<Result<Value, Status>> {
        None
    }
    /// Called for every object found at start (old None) and after every commit, in commit order: (None, Some) created,
    /// (Some, Some) changed, (Some, None) gone. Must be quick; for allocators.
    fn observe(&self, _old: Option<&Value>, _new: Option<&Value>) {}
}

/// A strategy without rules.
pub struct Plain;

/// Shape of a kind: what fields there are, their defaults and types.
pub trait Schema: Send + Sync {
    /// Fields that the schema does not know, as `spec.template.foo`; removed from the object when `prune`.
    fn unknown_fields(&self, object: &mut Value, prune: bool) -> Vec<String>;
    fn default(&self, _object: &mut Value) {}
    /// Built-in kinds refuse values of a wrong type when they read the body (400), before anything else is looked at.
    fn decode_error(&self, _object: &Value) -> Option<String> {
        None
    }
    /// Both at once, for every write: the decoding error, or the unknown fields, which are gone then.
    fn conform(&self, object: &mut Value) -> Result<Vec<String>, String> {
        match self.decode_error(object) {
            Some(why) => Err(why),
            None => Ok(self.unknown_fields(object, true)),
        }
    }
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }
    /// The OpenAPI v3 schema of the object, for `/openapi/v3` and explain.
    fn openapi(&self) -> Option<Value> {
        None
    }
}

/// An immutable snapshot of the table.
#[derive(Clone, Default)]
pub struct Registry {
    /// In order of discovery: core first, built-in groups as given, then custom groups by name.
    kinds: Vec<Arc<Kind>>,
    by_resource: HashMap<(String, String, String), Arc<Kind>>,
    /// Counts changes, for caches of what is derived from the table.
    generation: u64,
}

/// The table as it changes.
pub struct Kinds {
    current: ArcSwap<Registry>,
    change: Mutex<()>,
}

// === impl Kind ===

impl Kind {
    /// A kind with the usual verbs, no subresources and no rules; storage `group/plural` (core: `plural`).
    pub fn new(
        group: impl Into<Name>,
        version: impl Into<Name>,
        kind: impl Into<Name>,
        plural: impl Into<Name>,
        scope: Scope,
    ) -> Self {
        let (group, version, kind, plural) = (group.into(), version.into(), kind.into(), plural.into());
        let storage = if group.is_empty() { plural.to_string() } else { format!("{group}/{plural}") };
        Self {
            list_kind: format!("{kind}List").into(),
            singular: kind.to_lowercase().into(),
            group,
            version,
            kind,
            plural,
            short_names: Vec::new(),
            categories: Vec::new(),
            scope,
            verbs: ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
                .map(Name::from)
                .to_vec(),
            storage: storage.into(),
            has_generation: false,
            has_status: false,
            scale: None,
            subresources: Vec::new(),
            field_labels: Vec::new(),
            columns: Vec::new(),
            row: None,
            strategic: None,
            schema: None,
            strategy: Arc::new(Plain),
            convert: None,
            custom: false,
        }
    }

    /// `v1` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_string() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `plural` or `plural.group`, as messages name a resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_string() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Kind` or `Kind.group`, as messages of invalid objects name it.
    pub fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_string() } else { format!("{}.{}", self.kind, self.group) }
    }

    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// The value a field selector compares, or None for a field this kind does not know.
    pub fn field(&self, object: &Value, label: &str) -> Option<String> {
        let text = |pointer: &str| match object.pointer(pointer) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            Some(Value::Bool(flag)) => Some(flag.to_string()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        match label {
            "metadata.name" => Some(text("/metadata/name").unwrap_or_default()),
            "metadata.namespace" if self.namespaced() => Some(text("/metadata/namespace").unwrap_or_default()),
            _ => {
                let known = self.field_labels.iter().find(|known| known.label == label)?;
                Some(
                    known
                        .pointers
                        .iter()
                        .find_map(|pointer| text(pointer))
                        .unwrap_or_else(|| known.default.to_string()),
                )
            }
        }
    }

    /// Whether field selectors may name it.
    pub fn knows_field(&self, label: &str) -> bool {
        self.field(&Value::Null, label).is_some()
    }
}

// === impl FieldLabel ===

impl FieldLabel {
    /// `spec.nodeName` -> `/spec/nodeName`, empty when absent.
    pub fn dotted(label: &'static str) -> Self {
        Self { label: label.into(), pointers: vec![format!("/{}", label.replace('.', "/")).into()], default: "".into() }
    }
}

// === impl Plain ===

impl Strategy for Plain {}

// === impl Registry ===

impl Registry {
    /// A table of these kinds, in this order.
    pub fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        let mut registry = Self::default();
        for kind in kinds {
            registry.insert(Arc::new(kind));
        }
        registry
    }

    fn insert(&mut self, kind: Arc<Kind>) {
        let key = (kind.group.to_string(), kind.version.to_string(), kind.plural.to_string());
        if self.by_resource.insert(key, Arc::clone(&kind)).is_some() {
            self.kinds.retain(|known| {
                known.group != kind.group || known.version != kind.version || known.plural != kind.plural
            });
        }
        let at = match kind.custom {
            true => self
                .kinds
                .iter()
                .position(|known| known.custom && (&known.group, &known.plural) > (&kind.group, &kind.plural)),
            false => self.kinds.iter().position(|known| known.custom),
        };
        self.kinds.insert(at.unwrap_or(self.kinds.len()), kind);
    }

    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The entry for an object's apiVersion and kind.
    pub fn by_kind(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.kinds.iter().find(|known| known.group == group && known.version == version && known.kind == kind)
    }

    /// Group names in order of discovery, "" (core) first.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups = Vec::new();
        for kind in &self.kinds {
            if !groups.contains(&&*kind.group) {
                groups.push(&*kind.group);
            }
        }
        groups.sort_by_key(|group| !group.is_empty());
        groups
    }

    /// Versions of a group in order of preference (the order of registration).
    pub fn versions(&self, group: &str) -> Vec<&str> {
        let mut versions = Vec::new();
        for kind in self.kinds.iter().filter(|kind| kind.group == group) {
            if !versions.contains(&&*kind.version) {
                versions.push(&*kind.version);
            }
        }
        versions
    }

    pub fn in_version<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Kind>> {
        self.kinds.iter().filter(move |kind| kind.group == group && kind.version == version)
    }
}

// === impl Kinds ===

impl Kinds {
    pub fn new(registry: Registry) -> Self {
        Self { current: ArcSwap::from_pointee(registry), change: Mutex::new(()) }
    }

    pub fn load(&self) -> Arc<Registry> {
        self.current.load_full()
    }

    /// Adds or replaces entries.
    pub fn register(&self, kinds: impl IntoIterator<Item = Kind>) {
        let _one_at_a_time = self.change.lock();
        let mut next = Registry::clone(&self.current.load());
        for kind in kinds {
            next.insert(Arc::new(kind));
        }
        next.generation += 1;
        self.current.store(Arc::new(next));
    }

    /// Keeps only the entries `keep` wants.
    pub fn retain(&self, keep: impl Fn(&Kind) -> bool) {
        let _one_at_a_time = self.change.lock();
        let current = self.current.load();
        let mut next = Registry { generation: current.generation + 1, ..Registry::default() };
        for kind in current.kinds.iter().filter(|kind| keep(kind)) {
            next.insert(Arc::clone(kind));
        }
        self.current.store(Arc::new(next));
    }
}
