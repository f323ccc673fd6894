//! Knative's ConfigMaps as live values: parsed once per change, the last good value kept when a change is bad.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{Context, Error};

/// Parses the data of a ConfigMap.
pub type Parse<T> = fn(&BTreeMap<String, String>) -> Result<T, String>;
type Listeners = Arc<Mutex<Vec<Box<dyn Fn() + Send + Sync>>>>;

/// The current value of one ConfigMap. Cheap to clone; loading is a pointer read. Load once per decision, so that one
/// decision sees one version.
pub struct Config<T> {
    value: Arc<ArcSwap<T>>,
    listeners: Listeners,
}

// === impl Config ===

impl<T> Clone for Config<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), listeners: self.listeners.clone() }
    }
}

impl<T> std::fmt::Debug for Config<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Config")
    }
}

impl<T: Send + Sync + 'static> Config<T> {
    /// Reads ConfigMap `name` of the system namespace and follows it.
    ///
    /// # Errors
    /// If it does not exist or does not parse now. Later bad versions are logged and the last good one stays.
    pub async fn watch(ctx: &Context, name: &'static str, parse: Parse<T>) -> Result<Self, Error> {
        let maps = ctx.config_maps().await;
        let namespace = ctx.system_namespace.clone();
        let Some(first) = maps.get(&namespace, name) else {
            let label =
                ctx.resource_label.as_ref().map(|label| format!(", or has no label {label}")).unwrap_or_default();
            return Err(Error::Permanent(format!(
                "ConfigMap {namespace}/{name} is missing{label}; apply it (an empty one gives the defaults) and start \
                 again"
            )));
        };
        let empty = BTreeMap::new();
        let value = parse(first.data.as_ref().unwrap_or(&empty)).map_err(|error| {
            Error::Permanent(format!("ConfigMap {namespace}/{name}: {error}; correct it and start again"))
        })?;
        let config = Self { value: Arc::new(ArcSwap::from_pointee(value)), listeners: Listeners::default() };
        let (value, listeners) = (config.value.clone(), config.listeners.clone());
        let last = Mutex::new(first.data.clone());
        maps.on_event(move |change| {
            let map = change.object();
            if map.metadata.name.as_deref() != Some(name) || change.is_deleted() {
                return;
            }
            if std::mem::replace(&mut *last.lock(), map.data.clone()) == map.data {
                return;
            }
            match parse(map.data.as_ref().unwrap_or(&empty)) {
                Ok(new) => {
                    value.store(Arc::new(new));
                    for listener in listeners.lock().iter() {
                        listener();
                    }
                }
                Err(error) => {
                    tracing::error!("ConfigMap {namespace}/{name}: {error}; the last good version stays in force");
                }
            }
        });
        Ok(config)
    }

    /// A value that never changes: for tests and for roles without the ConfigMap.
    pub fn fixed(value: T) -> Self {
        Self { value: Arc::new(ArcSwap::from_pointee(value)), listeners: Listeners::default() }
    }

    pub fn load(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Calls `listener` after each change of the value, on the watching task: it must be quick.
    pub fn on_change(&self, listener: impl Fn() + Send + Sync + 'static) {
        self.listeners.lock().push(Box::new(listener));
    }
}
