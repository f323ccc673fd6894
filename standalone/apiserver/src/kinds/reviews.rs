//! Questions in the form of objects: who am I, may I. They are answered and never stored.
//!
//! On one machine the one who may talk to the API at all may do everything, so the answer to every access review is yes.

use serde_json::{Value, json};

use super::edit::set;
use crate::{Kind, Scope, Status, Strategy, WriteContext};

enum Review {
    Access,
    Rules,
    Identity,
    /// Answered by the server, which knows the tokens.
    Token,
}

pub(super) fn kinds() -> Vec<Kind> {
    const AUTHORIZATION: &str = "authorization.k8s.io";
    let kind = |group: &'static str, kind: &'static str, plural: &'static str, scope, review| Kind {
        verbs: vec!["create".into()],
        strategy: std::sync::Arc::new(review),
        ..Kind::new(group, "v1", kind, plural, scope)
    };
    vec![
        kind("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", Scope::Cluster, Review::Identity),
        kind("authentication.k8s.io", "TokenReview", "tokenreviews", Scope::Cluster, Review::Token),
        kind(AUTHORIZATION, "LocalSubjectAccessReview", "localsubjectaccessreviews", Scope::Namespaced, Review::Access),
        kind(AUTHORIZATION, "SelfSubjectAccessReview", "selfsubjectaccessreviews", Scope::Cluster, Review::Access),
        kind(AUTHORIZATION, "SelfSubjectRulesReview", "selfsubjectrulesreviews", Scope::Cluster, Review::Rules),
        kind(AUTHORIZATION, "SubjectAccessReview", "subjectaccessreviews", Scope::Cluster, Review::Access),
    ]
}

// === impl Review ===

impl Strategy for Review {
    fn answer(&self, cx: &WriteContext<'_>, object: &Value) -> Option<Result<Value, Status>> {
        let mut answer = object.clone();
        let status = match self {
            Self::Access => json!({ "allowed": true }),
            Self::Rules => json!({
                "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
                "incomplete": false,
            }),
            Self::Token => json!({ "authenticated": false }),
            Self::Identity => json!({ "userInfo": { "username": cx.user, "groups": cx.groups } }),
        };
        set(&mut answer, "status", status);
        Some(Ok(answer))
    }
}
