//! Versions of one kind: objects are stored as one of them was written, and shown as the one that is asked for.

use std::borrow::Cow;

use serde_json::Value;

use crate::metadata;
use crate::registry::Kind;

/// The object as this version of the API shows it: custom resources only change their apiVersion, some built-in kinds more.
pub(crate) fn in_version<'a>(kind: &Kind, object: &'a Value) -> Cow<'a, Value> {
    if shown_as_stored(kind, object) {
        return Cow::Borrowed(object);
    }
    let mut object = object.clone();
    match kind.convert {
        Some(convert) => (convert.from_stored)(&mut object),
        None => object["apiVersion"] = kind.api_version().into(),
    }
    Cow::Owned(object)
}

/// Whether the stored text of an object can be sent as it is.
pub(crate) fn shown_as_stored(kind: &Kind, object: &Value) -> bool {
    let api_version = metadata::text(object, "/apiVersion");
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    kind.convert.is_none() && group == kind.group && version == kind.version
}

pub(super) fn to_stored(kind: &Kind, object: &mut Value) {
    if let Some(convert) = kind.convert {
        (convert.to_stored)(object);
    }
}
