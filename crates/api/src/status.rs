//! What every status has in common, and access to it without knowing the kind.

use std::collections::BTreeMap;

use kube::ResourceExt;
use serde::{Deserialize, Deserializer, Serialize};

use crate::conditions::{Condition, ConditionSet, Manager};
use crate::{autoscaling, caching, networking, serving};

/// Where an object can be reached. `CACerts` is spelled so upstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Addressable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    #[serde(rename = "CACerts", skip_serializing_if = "Option::is_none")]
    pub ca_certs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

/// The part of a status that the generic reconcile loop works with.
pub trait StatusFields: Default + Clone + PartialEq + Serialize {
    fn observed_generation(&self) -> i64;
    fn set_observed_generation(&mut self, generation: i64);
    fn conditions(&self) -> &Vec<Condition>;
    fn conditions_mut(&mut self) -> &mut Vec<Condition>;
    fn annotations_mut(&mut self) -> &mut BTreeMap<String, String>;
}

/// A kind with conditions whose happy condition is `Ready`.
pub trait Conditioned: kube::Resource + Clone {
    type Status: StatusFields;

    fn condition_set() -> ConditionSet;
    fn status(&self) -> Option<&Self::Status>;
    /// The status, created when absent.
    fn status_mut(&mut self) -> &mut Self::Status;

    fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status()?.conditions().iter().find(|c| c.kind == kind)
    }

    fn ready(&self) -> Option<&Condition> {
        self.condition("Ready")
    }

    fn observed(&self) -> bool {
        self.status().map_or(0, StatusFields::observed_generation) == self.meta().generation.unwrap_or(0)
    }

    /// The controller has seen this generation and it is Ready.
    fn is_ready(&self) -> bool {
        self.observed() && self.ready().is_some_and(Condition::is_true)
    }

    /// The controller has seen this generation and it is not Ready.
    fn is_failed(&self) -> bool {
        self.observed() && self.ready().is_some_and(Condition::is_false)
    }

    /// Edit the conditions in place, at the current time.
    fn mark(&mut self) -> Manager<'_> {
        Self::condition_set().manage(self.status_mut().conditions_mut())
    }

    /// `namespace/name`, for messages.
    fn display_name(&self) -> String {
        match self.namespace() {
            Some(namespace) => format!("{namespace}/{}", self.name_any()),
            None => self.name_any(),
        }
    }
}

macro_rules! conditioned {
    ($($kind:path, $status:path, [$($dependent:literal),*];)*) => {$(
        impl StatusFields for $status {
            fn observed_generation(&self) -> i64 {
                self.observed_generation
            }
            fn set_observed_generation(&mut self, generation: i64) {
                self.observed_generation = generation;
            }
            fn conditions(&self) -> &Vec<Condition> {
                &self.conditions
            }
            fn conditions_mut(&mut self) -> &mut Vec<Condition> {
                &mut self.conditions
            }
            fn annotations_mut(&mut self) -> &mut BTreeMap<String, String> {
                &mut self.annotations
            }
        }

        impl Conditioned for $kind {
            type Status = $status;

            fn condition_set() -> ConditionSet {
                ConditionSet::living(&[$($dependent),*])
            }
            fn status(&self) -> Option<&Self::Status> {
                self.status.as_ref()
            }
            fn status_mut(&mut self) -> &mut Self::Status {
                self.status.get_or_insert_with(Default::default)
            }
        }
    )*};
}

conditioned! {
    serving::v1::Service, serving::v1::ServiceStatus, ["ConfigurationsReady", "RoutesReady"];
    serving::v1::Configuration, serving::v1::ConfigurationStatus, [];
    serving::v1::Revision, serving::v1::RevisionStatus, ["ResourcesAvailable", "ContainerHealthy"];
    serving::v1::Route, serving::v1::RouteStatus, ["AllTrafficAssigned", "IngressReady", "CertificateProvisioned"];
    serving::v1beta1::DomainMapping, serving::v1beta1::DomainMappingStatus,
        ["DomainClaimed", "ReferenceResolved", "IngressReady", "CertificateProvisioned"];
    autoscaling::v1alpha1::PodAutoscaler, autoscaling::v1alpha1::PodAutoscalerStatus,
        ["Active", "ScaleTargetInitialized", "SKSReady"];
    autoscaling::v1alpha1::Metric, autoscaling::v1alpha1::MetricStatus, [];
    networking::v1alpha1::Ingress, networking::v1alpha1::IngressStatus, ["NetworkConfigured", "LoadBalancerReady"];
    networking::v1alpha1::ServerlessService, networking::v1alpha1::ServerlessServiceStatus, ["EndpointsPopulated"];
    networking::v1alpha1::Certificate, networking::v1alpha1::CertificateStatus, [];
    caching::v1alpha1::Image, caching::v1alpha1::ImageStatus, [];
}

pub(crate) fn is_zero_i64(value: &i64) -> bool {
    *value == 0
}

pub(crate) fn is_zero_i32(value: &i32) -> bool {
    *value == 0
}

/// `null` means the default, as Go reads it.
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}
