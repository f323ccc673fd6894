//! One attempt to start a container: everything between "it should run" and a process.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use tokio::task::JoinHandle;

use super::Runner;
use crate::facts::Wanted;
use crate::groups::{Group, Limits};
use crate::image::{self, ImageError};
use crate::logs::Journal;
use crate::probe::{Exec, Target};
use crate::process;
use crate::sandbox::{Child, Launch, Mount, Root, StartError};
use crate::{dns, env, volumes};

/// A started process with its surroundings.
pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) id: String,
    pub(crate) started_at: Timestamp,
    pub(crate) target: Target,
    pub(crate) journal: Arc<Journal>,
    /// Copies the process's output to the journal.
    pub(crate) output: Vec<JoinHandle<()>>,
    pub(crate) message_file: PathBuf,
    pub(crate) group: Option<Arc<Group>>,
    /// With a limit of memory: how many of the group had been killed for want of it before.
    pub(crate) starved: Option<u64>,
}

/// Why there is no process.
pub(crate) enum Failure {
    /// May work later: waits with this reason and message.
    Wait {
        reason: &'static str,
        message: String,
    },
    Image(ImageError),
    /// Counts as a run that ended.
    Start(String),
}

// === impl Running ===

impl Running {
    /// Returns when the process has ended; its status is still to be had.
    pub(crate) async fn ended_early(&mut self) {
        let _ = self.child.wait().await;
    }
}

// === impl Runner ===

impl Runner {
    pub(super) async fn attempt(&self) -> Result<Running, Failure> {
        let agent = &self.agent;
        let namespace = self.pod.namespace().unwrap_or_default();
        let line = image::command_line(&self.container, &agent.options.binaries).map_err(|error| {
            match error.reason {
                // Says what to change in the pod, like a failed creation.
                "CreateContainerError" => Failure::Wait { reason: error.reason, message: error.message },
                _ => Failure::Image(error),
            }
        })?;
        let config = |message: String| Failure::Wait { reason: "CreateContainerConfigError", message };
        let sources = Wanted::of_env(&self.container).fetch(&agent.ctx.client, &namespace).await;
        let sources = sources.map_err(|error| config(error.to_string()))?;
        let facts = agent.facts(self.cell.ip);
        let preset = image::binary(&self.container, &agent.options.binaries).and_then(|binary| binary.user);
        let (uid, gid) = user(&self.pod, &self.container, preset);
        let home = home(uid);
        let mut env = env::build(&self.pod, &self.container, &home, &facts, &sources).map_err(config)?;
        if let Some((from, to)) = self.moved_port {
            move_port(&mut env, from, to);
        }
        let known: BTreeMap<String, String> = env.iter().cloned().collect();
        let argv: Vec<String> = line.iter().map(|word| env::expand(word, &known)).collect();

        let dir = agent.volatile_dir(&self.pod).join("containers").join(&self.container.name);
        let failed = |error: std::io::Error| config(format!("{}: {error}", dir.display()));
        fs::create_dir_all(&dir).map_err(failed)?;
        let message_file = dir.join("termination-log");
        fs::write(&message_file, "").map_err(failed)?;
        let limits = Limits::of(&self.container);
        let group_name = format!("{}-{}", self.pod.uid().unwrap_or_default(), self.container.name);
        let group = agent.groups.group(&group_name, &limits).map_err(config)?;
        let mut root = self.root(&env, &message_file).map_err(config)?;
        if let (Some(root), Some(group)) = (&mut root, &group) {
            root.groups = group.views().map(|(dir, at)| (dir.to_owned(), at.to_owned())).collect();
        }
        let mounts = root.as_ref().map(|root| root.mounts.len());

        let context = self.container.security_context.as_ref();
        let given_dir = self.container.working_dir.clone().filter(|dir| !dir.is_empty());
        let working_dir = given_dir.as_ref().map_or_else(|| agent.options.working_dir.clone(), PathBuf::from);
        let launch = Launch {
            argv,
            env: env.clone(),
            working_dir,
            working_dir_required: given_dir.is_some(),
            uid,
            gid,
            no_new_privileges: context.and_then(|context| context.allow_privilege_escalation) == Some(false),
            root,
            group: group.clone(),
        };
        let launched = self.cell.sandbox.run(move |inside| inside.launch(&launch)).await;
        let launched = launched.map_err(|error| config(error.to_string()))?;
        let mut launched = launched.map_err(|error| match error {
            StartError::Program(message) => Failure::Start(message),
            StartError::Root(message) => {
                tracing::warn!(pod = self.pod.name_any(), mounts, message, "container root not made");
                Failure::Wait {
                    reason: "CreateContainerError",
                    message: format!("cannot make the file system: {message}"),
                }
            }
        })?;
        let started_at = Timestamp::now();
        let starved = limits.memory.and(group.as_ref()).map(|group| group.killed());
        process::record(&agent.processes_dir(), launched.child.pid);
        let uid_text = self.pod.uid().unwrap_or_default();
        let run = self.shared.restarts(self.slot);
        let journal = agent.journals.begin(&agent.logs_dir(&self.pod), &uid_text, &self.container.name, run);
        let journal = journal.map_err(failed)?;
        let mut output = Vec::with_capacity(2);
        if let Some(out) = launched.child.stdout.take() {
            output.push(tokio::spawn(journal.clone().copy("stdout", out)));
        }
        if let Some(err) = launched.child.stderr.take() {
            output.push(tokio::spawn(journal.clone().copy("stderr", err)));
        }
        let mounts: Option<Arc<OwnedFd>> = launched.mounts.map(Arc::new);
        let exec = Exec { sandbox: self.cell.sandbox.clone(), mounts, env, uid, gid, group: group.clone() };
        let target = Target { ip: self.cell.ip, moved_port: self.moved_port, exec: Some(exec) };
        let short: String = uid_text.chars().filter(|c| *c != '-').collect();
        let id = format!("process://{short}-{}-{run}", self.container.name);
        Ok(Running { child: launched.child, id, started_at, target, journal, output, message_file, group, starved })
    }

    /// The container's file system, if this process may make one.
    fn root(&self, env: &[(String, String)], message_file: &Path) -> Result<Option<Root>, String> {
        let agent = &self.agent;
        let mut mounts = volumes::mounts(&self.pod, &self.container, &agent.volume_dirs(&self.pod), env)?;
        if !agent.network.has_namespaces() {
            let token = Path::new("/var/run/secrets/kubernetes.io/serviceaccount");
            return match mounts.iter().find(|mount| mount.target != token) {
                None => Ok(None),
                Some(mount) => Err(format!(
                    "a volume cannot appear at {} without a mount namespace: start as root",
                    mount.target.display()
                )),
            };
        }
        let message_path = self.container.termination_message_path.as_deref().filter(|path| !path.is_empty());
        mounts.push(Mount {
            source: message_file.to_owned(),
            sub_path: None,
            target: PathBuf::from(message_path.unwrap_or("/dev/termination-log")),
            read_only: false,
        });
        let program = image::binary(&self.container, &agent.options.binaries).map(|binary| &binary.path);
        if let Some(program) = program.filter(|program| agent.host_mounts.hides(program)) {
            mounts.push(Mount { source: program.clone(), sub_path: None, target: program.clone(), read_only: true });
        }
        let context = self.container.security_context.as_ref();
        Ok(Some(Root {
            scratch: agent.scratch_dir(),
            host: agent.host_mounts.clone(),
            files: dns::files(&self.pod, &agent.options, self.cell.ip),
            mounts,
            groups: Vec::new(),
            read_only: context.and_then(|context| context.read_only_root_filesystem) == Some(true),
        }))
    }
}

/// The home of whom the program runs as; of who started the agent if that is the same.
fn home(uid: Option<u32>) -> String {
    match uid.filter(|uid| *uid != rustix::process::geteuid().as_raw()) {
        Some(uid) => env::home(uid, &fs::read_to_string("/etc/passwd").unwrap_or_default()).to_owned(),
        None => std::env::var("HOME").unwrap_or_else(|_| "/".to_owned()),
    }
}

/// User and group the pod asks for, then those of the image; programs of this machine otherwise run as who started the
/// agent.
fn user(pod: &Pod, container: &Container, preset: Option<u32>) -> (Option<u32>, Option<u32>) {
    let pods = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user = own.and_then(|context| context.run_as_user).or_else(|| pods.and_then(|context| context.run_as_user));
    let group = own.and_then(|context| context.run_as_group).or_else(|| pods.and_then(|context| context.run_as_group));
    let id = |id: Option<i64>| id.and_then(|id| u32::try_from(id).ok());
    match user {
        None => (preset, id(group).or(preset)),
        Some(_) => (id(user), id(group)),
    }
}

/// Tells the program, and the queue-proxy before it, another port than the pod's.
fn move_port(env: &mut [(String, String)], from: u16, to: u16) {
    let (from, to) = (from.to_string(), to.to_string());
    for (name, value) in env {
        match name.as_str() {
            "PORT" | "USER_PORT" if *value == from => value.clone_from(&to),
            "SERVING_READINESS_PROBE" => {
                *value = value.replace(&format!("\"port\":{from}"), &format!("\"port\":{to}"));
            }
            _ => {}
        }
    }
}

/// The port that `PORT` names in the first container that has it.
pub(crate) fn wanted_port(pod: &Pod) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let variables = containers.flat_map(|container| container.env.iter().flatten());
    variables.filter(|variable| variable.name == "PORT").find_map(|variable| variable.value.as_ref()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_decides_who_it_runs_as_then_its_image() {
        let container = |context: serde_json::Value| -> Container {
            serde_json::from_value(serde_json::json!({"name": "c", "securityContext": context})).unwrap()
        };
        let pod = Pod::default();
        assert_eq!(user(&pod, &container(serde_json::json!({})), None), (None, None));
        assert_eq!(user(&pod, &container(serde_json::json!({})), Some(65532)), (Some(65532), Some(65532)));
        assert_eq!(user(&pod, &container(serde_json::json!({"runAsUser": 7})), Some(65532)), (Some(7), None));
        assert_eq!(user(&pod, &container(serde_json::json!({"runAsGroup": 8})), Some(65532)), (Some(65532), Some(8)));
    }

    #[test]
    fn program_and_queue_proxy_learn_the_moved_port() {
        let probe = r#"{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}"#;
        let pairs = [("PORT", "8080"), ("USER_PORT", "8080"), ("SERVING_READINESS_PROBE", probe), ("OTHER", "8080")];
        let mut env: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        move_port(&mut env, 8080, 18_001);
        assert_eq!((env[0].1.as_str(), env[1].1.as_str(), env[3].1.as_str()), ("18001", "18001", "8080"));
        assert!(env[2].1.contains("\"port\":18001,"), "{}", env[2].1);
    }
}
