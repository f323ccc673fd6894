//! A pod's volumes as directories of the host, made before its containers start.
//!
//! Content that can change (ConfigMaps, Secrets, downward API, tokens) is written the way the kubelet does: files in a
//! fresh directory, a symbolic link `..data` to it, and one link per name through `..data`, so that a refresh
//! replaces everything at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, Secret, ServiceAccount, ServiceAccountTokenProjection,
    Volume,
};
use kube::api::PostParams;
use kube::{Api, ResourceExt};

use crate::env;
use crate::facts::{self, Facts, Sources, Wanted};
use crate::sandbox::Mount;

const DEFAULT_MODE: i32 = 0o644;
/// Before a token's end by this share of its life, it is replaced.
const ROTATE_AT: f64 = 0.8;

/// A volume that cannot be made: it may work later, when an object appears.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {message}")]
pub(crate) struct VolumeError {
    pub(crate) volume: String,
    pub(crate) message: String,
}

/// Where the volumes of a pod are, one directory each.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    /// What containers write.
    pub(crate) disk: PathBuf,
    /// What is written for them, and `emptyDir` with the medium `Memory`.
    pub(crate) memory: PathBuf,
}

type Files = BTreeMap<String, (Vec<u8>, u32)>;

// === impl Dirs ===

impl Dirs {
    fn of(&self, volume: &Volume) -> PathBuf {
        let on_disk = volume.empty_dir.as_ref().is_some_and(|dir| dir.medium.as_deref() != Some("Memory"));
        if on_disk { &self.disk } else { &self.memory }.join(&volume.name)
    }
}

/// Makes the directories of all volumes of `pod` below `dirs`, or writes their content anew. Returns when they must
/// be written again because a token ends, if they contain one.
pub(crate) async fn prepare(
    client: &kube::Client,
    pod: &Pod,
    facts: &Facts,
    dirs: &Dirs,
) -> Result<Option<Duration>, VolumeError> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    if volumes.is_empty() {
        return Ok(None);
    }
    let namespace = pod.namespace().unwrap_or_default();
    let sources = Wanted::of_volumes(volumes)
        .fetch(client, &namespace)
        .await
        .map_err(|error| VolumeError { volume: volumes[0].name.clone(), message: error.to_string() })?;
    let mut again = None;
    for volume in volumes {
        let failed = |message: String| VolumeError { volume: volume.name.clone(), message };
        let path = dirs.of(volume);
        if volume.host_path.is_some() {
            continue;
        }
        fs::create_dir_all(&path).map_err(|error| failed(error.to_string()))?;
        if volume.empty_dir.is_some() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(|error| failed(error.to_string()))?;
            continue;
        }
        let mut files = content(pod, facts, &sources, volume).map_err(failed)?;
        let tokens = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for token in tokens.filter_map(|source| source.service_account_token.as_ref()) {
            let (value, life) = request_token(client, pod, token).await.map_err(failed)?;
            files.insert(token.path.clone(), (value.into_bytes(), 0o644));
            let renew = life.mul_f64(ROTATE_AT);
            again = Some(again.map_or(renew, |again: Duration| again.min(renew)));
        }
        write_atomically(&path, &files).map_err(|error| failed(error.to_string()))?;
    }
    Ok(again)
}

/// Whether the content of a volume follows the pod's labels and annotations.
pub(crate) fn follow_metadata(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    volumes.iter().any(|volume| {
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        volume.downward_api.is_some() || projected.into_iter().any(|source| source.downward_api.is_some())
    })
}

/// Whether the content of a volume comes from a ConfigMap or Secret, which may change.
pub(crate) fn follow_objects(pod: &Pod) -> bool {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    // The certificate authority's ConfigMap in every pod's token volume never changes while we run.
    let watched = |volume: &&Volume| !volume.name.starts_with("kube-api-access-");
    let volumes: Vec<Volume> = volumes.iter().filter(watched).cloned().collect();
    Wanted::of_volumes(&volumes) != Wanted::default()
}

/// Where the volumes of `container` go in its root. `env` is what `subPathExpr` can refer to.
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    dirs: &Dirs,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_deref()).unwrap_or_default();
    let known: BTreeMap<String, String> = env.iter().cloned().collect();
    let mount = |wanted: &k8s_openapi::api::core::v1::VolumeMount| {
        let volume = volumes.iter().find(|volume| volume.name == wanted.name);
        let volume = volume.ok_or_else(|| format!("volumeMount {:?} names no volume of the pod", wanted.name))?;
        let source = volume.host_path.as_ref().map_or_else(|| dirs.of(volume), |host| PathBuf::from(&host.path));
        let sub_path = wanted.sub_path_expr.as_deref().map(|expr| env::expand(expr, &known));
        let content_only_read = volume.empty_dir.is_none() && volume.host_path.is_none();
        Ok(Mount {
            source,
            sub_path: sub_path.or_else(|| wanted.sub_path.clone()).filter(|path| !path.is_empty()),
            target: PathBuf::from(&wanted.mount_path),
            read_only: wanted.read_only == Some(true) || content_only_read,
        })
    };
    container.volume_mounts.iter().flatten().map(mount).collect()
}

fn content(pod: &Pod, facts: &Facts, sources: &Sources, volume: &Volume) -> Result<Files, String> {
    let namespace = pod.namespace().unwrap_or_default();
    let mut files = Files::new();
    if let Some(source) = &volume.config_map {
        let map = sources.config_maps.get(&source.name).and_then(Option::as_ref);
        let data = map.map(config_map_data);
        let what = ("configmap", "ConfigMap", source.name.as_str());
        keys(&mut files, what, &namespace, data, source.items.as_deref(), source.default_mode, source.optional)?;
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let data = sources.secrets.get(name).and_then(Option::as_ref).map(secret_data);
        let what = ("secret", "Secret", name);
        keys(&mut files, what, &namespace, data, source.items.as_deref(), source.default_mode, source.optional)?;
    } else if let Some(source) = &volume.downward_api {
        downward(&mut files, pod, facts, source.items.as_deref().unwrap_or_default(), source.default_mode)?;
    } else if let Some(projected) = &volume.projected {
        for source in projected.sources.iter().flatten() {
            if let Some(source) = &source.config_map {
                let data = sources.config_maps.get(&source.name).and_then(Option::as_ref).map(config_map_data);
                let what = ("configmap", "ConfigMap", source.name.as_str());
                let (items, mode) = (source.items.as_deref(), projected.default_mode);
                keys(&mut files, what, &namespace, data, items, mode, source.optional)?;
            } else if let Some(source) = &source.secret {
                let data = sources.secrets.get(&source.name).and_then(Option::as_ref).map(secret_data);
                let what = ("secret", "Secret", source.name.as_str());
                let (items, mode) = (source.items.as_deref(), projected.default_mode);
                keys(&mut files, what, &namespace, data, items, mode, source.optional)?;
            } else if let Some(source) = &source.downward_api {
                let items = source.items.as_deref().unwrap_or_default();
                downward(&mut files, pod, facts, items, projected.default_mode)?;
            }
        }
    } else {
        return Err("this kind of volume is not supported on one machine; use emptyDir, configMap, secret, projected \
                    or downwardAPI"
            .to_owned());
    }
    Ok(files)
}

fn config_map_data(map: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    text.chain(map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()))).collect()
}

fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

fn keys(
    files: &mut Files,
    (kind, title, name): (&str, &str, &str),
    namespace: &str,
    data: Option<BTreeMap<String, Vec<u8>>>,
    items: Option<&[KeyToPath]>,
    default_mode: Option<i32>,
    optional: Option<bool>,
) -> Result<(), String> {
    let optional = optional == Some(true);
    let Some(data) = data else {
        return if optional { Ok(()) } else { Err(format!("{kind} {name:?} not found")) };
    };
    let mode = |own: Option<i32>| own.or(default_mode).unwrap_or(DEFAULT_MODE).cast_unsigned() & 0o777;
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        files.extend(data.into_iter().map(|(key, value)| (key, (value, mode(None)))));
        return Ok(());
    };
    for item in items {
        match data.get(&item.key) {
            Some(value) => drop(files.insert(item.path.clone(), (value.clone(), mode(item.mode)))),
            None if optional => {}
            None => return Err(format!("references non-existent {title} key: {} of {namespace}/{name}", item.key)),
        }
    }
    Ok(())
}

fn downward(
    files: &mut Files,
    pod: &Pod,
    facts: &Facts,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<(), String> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    for item in items {
        let value = if let Some(selector) = &item.field_ref {
            facts::field(pod, facts, selector)?
        } else if let Some(selector) = &item.resource_field_ref {
            facts::resource(containers, None, facts, selector)?
        } else {
            String::new()
        };
        let mode = item.mode.or(default_mode).unwrap_or(DEFAULT_MODE).cast_unsigned() & 0o777;
        files.insert(item.path.clone(), (value.into_bytes(), mode));
    }
    Ok(())
}

async fn request_token(
    client: &kube::Client,
    pod: &Pod,
    wanted: &ServiceAccountTokenProjection,
) -> Result<(String, Duration), String> {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    let account = account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned());
    let seconds = wanted.expiration_seconds.unwrap_or(3600);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: wanted.audience.clone().into_iter().filter(|audience| !audience.is_empty()).collect(),
            expiration_seconds: Some(seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            }),
        },
        ..TokenRequest::default()
    };
    let api = Api::<ServiceAccount>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let answer = api.create_token_request(&account, &PostParams::default(), &request).await;
    let answer = answer.map_err(|error| format!("failed to fetch token: {error}"))?;
    let status = answer.status.ok_or("failed to fetch token: the answer has none")?;
    Ok((status.token, Duration::from_secs(seconds.max(60).cast_unsigned())))
}

fn write_atomically(dir: &Path, files: &Files) -> io::Result<()> {
    let current = dir.join("..data");
    if unchanged(&current, files) {
        return Ok(());
    }
    let version = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let fresh = dir.join(&version);
    fs::create_dir(&fresh)?;
    for (path, (content, mode)) in files {
        if path.split('/').any(|part| part == "..") || path.starts_with('/') {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("invalid path {path:?}")));
        }
        let file = fresh.join(path);
        file.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(&file, content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(*mode))?;
    }
    let previous = fs::read_link(&current).ok();
    let next = dir.join("..data_tmp");
    let _ = fs::remove_file(&next);
    symlink(&version, &next)?;
    fs::rename(&next, &current)?;
    let names: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &names {
        let link = dir.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), &link)?;
        }
    }
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name();
        let stale = name.to_str().is_some_and(|name| !name.starts_with("..") && !names.contains(name));
        if stale {
            fs::remove_file(entry.path())?;
        }
    }
    if let Some(previous) = previous {
        let _ = fs::remove_dir_all(dir.join(previous));
    }
    Ok(())
}

fn unchanged(current: &Path, files: &Files) -> bool {
    current.is_dir()
        && files.iter().all(|(path, (content, _))| fs::read(current.join(path)).is_ok_and(|c| c == *content))
        && count_files(current) == files.len()
}

fn count_files(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_files(&entry.path()) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refresh_replaces_everything_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let files = |pairs: &[(&str, &str)]| -> Files {
            pairs.iter().map(|(path, text)| ((*path).to_owned(), (text.as_bytes().to_vec(), 0o640))).collect()
        };
        write_atomically(dir.path(), &files(&[("a", "1"), ("d/b", "2")])).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("d/b")).unwrap(), "2");
        let first = fs::read_link(dir.path().join("..data")).unwrap();
        write_atomically(dir.path(), &files(&[("a", "1"), ("d/b", "2")])).unwrap();
        assert_eq!(fs::read_link(dir.path().join("..data")).unwrap(), first, "nothing changed, nothing written");
        write_atomically(dir.path(), &files(&[("a", "3")])).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(!dir.path().join("d").exists() && !dir.path().join(first).exists());
        assert!(write_atomically(dir.path(), &files(&[("../x", "")])).is_err());
    }
}
