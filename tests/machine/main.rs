//! The one-machine mode as its users meet it: real `postrider up`, real kubectl, real Envoy, real processes.
//!
//! One instance serves most cases, each with services of its own; cases about starting and stopping run their own
//! instances before it. Cases run in the order below, one at a time.

#![allow(unreachable_pub, reason = "a program: nothing of it is reachable from outside")]

mod harness;
mod http_client;

mod autoscaling;
mod bad_input;
mod hello;
mod kubectl;
mod lifecycle;
mod traffic;

use std::sync::Arc;

use harness::Machine;
use libtest_mimic::{Arguments, Failed, Trial};

type Case = (&'static str, fn(&Machine));

const CASES: &[Case] = &[
    ("hello_is_ready_and_answers", hello::ready_and_answers),
    ("hello_shows_the_columns_knative_users_know", hello::columns),
    ("a_local_program_runs_without_an_image", hello::host_program),
    ("hundred_requests_wake_a_sleeping_service", autoscaling::wakes_for_hundred_requests),
    ("load_scales_out_and_in", autoscaling::scales_out_and_in),
    ("scale_annotations_are_honoured", autoscaling::annotations),
    ("container_concurrency_is_a_hard_limit", autoscaling::hard_limit),
    ("a_new_template_moves_traffic_without_a_failed_request", traffic::rollout),
    ("percentages_split_traffic", traffic::split),
    ("tags_have_urls_and_rollback_works", traffic::tags_and_rollback),
    ("kubectl_edits_patches_and_labels", kubectl::edits),
    ("kubectl_watches_waits_and_describes", kubectl::watches),
    ("kubectl_selects_and_formats", kubectl::selects),
    ("kubectl_scales_and_follows_a_deployment", kubectl::deployment),
    ("kubectl_follows_logs", kubectl::logs),
    ("deleting_a_service_removes_everything", kubectl::deletes),
    ("an_invalid_manifest_is_refused_with_its_field", bad_input::invalid_manifest),
    ("an_image_that_cannot_be_had_is_reported", bad_input::missing_image),
    ("a_program_that_exits_is_reported_and_the_last_good_revision_serves", bad_input::exiting_program),
    ("a_port_nobody_listens_on_never_gets_ready", bad_input::silent_port),
];

const LIFECYCLE: &[(&str, fn())] = &[
    ("a_taken_port_ends_the_start_with_one_sentence", lifecycle::taken_port),
    ("a_missing_envoy_ends_the_start_with_one_sentence", lifecycle::missing_envoy),
    ("an_envoy_that_ends_is_told_at_once", lifecycle::broken_envoy),
    ("an_interrupted_start_undoes_itself", lifecycle::interrupted),
    ("a_missing_privilege_ends_the_start_with_one_sentence", lifecycle::missing_privilege),
    ("stopping_leaves_nothing_behind_and_starting_finds_everything", lifecycle::restart),
    ("everything_serves_again_after_kill", lifecycle::killed),
    ("loopback_mode_serves_without_namespaces", lifecycle::loopback),
];

fn main() {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let machine: Arc<std::sync::OnceLock<Machine>> = Arc::default();
    let mut trials = Vec::new();
    for (name, case) in LIFECYCLE {
        trials.push(Trial::test(*name, move || guarded(case)));
    }
    for (name, case) in CASES {
        let machine = machine.clone();
        trials.push(Trial::test(*name, move || guarded(|| case(machine.get_or_init(Machine::start)))));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(machine) = Arc::into_inner(machine).and_then(std::sync::OnceLock::into_inner) {
        machine.stop();
    }
    conclusion.exit();
}

/// A panic with its message becomes the failure of the case.
fn guarded(case: impl FnOnce()) -> Result<(), Failed> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(case)).map_err(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Failed::from(message)
    })
}
