"""Parts of a pod's manifest, made of flags of launch.kubernetes.

    from launch import pod_spec

    pod_spec.quantity('16Gi')  # 17179869184.0
    pod_spec.toleration('gpu:NoSchedule')  # {'key': 'gpu', 'operator': 'Exists', 'effect': 'NoSchedule'}
    volumes, mounts = pod_spec.volumes(['data:/data'], [])
    pod_spec.mount_of('/data/cityscapes', mounts)  # {'name': 'volume-0', 'mountPath': '/data'}

Every value is checked before Kubernetes sees it.
"""

import re
from typing import Any

from launch import entry

SCRATCH = '/scratch'  # HOME and TMPDIR, where the rest of the image is read-only


def literal(text: str) -> str:
    """Returns a word of a command, or the value of a variable, for Kubernetes, which replaces $(NAME), and $$ by $."""
    return text.replace('$', '$$')


def quantity(text: str) -> float | None:
    """Returns the value of a Kubernetes quantity, e.g. 0.5 of '500m'; None if it is none."""
    found = re.fullmatch(r'(\d+(?:\.\d+)?)(m|[kMGTP]|[KMGTP]i)?', text)
    if not found:
        return None
    unit = found.group(2) or ''
    scale = {'': 1, 'm': 1e-3, 'k': 1e3}.get(unit) or (1024 if unit.endswith('i') else 1000) ** (
        'KMGTP'.index(unit[0]) + 1
    )
    return float(found.group(1)) * scale


def resource(text: str) -> tuple[str, int]:
    """Splits a value of --resource, NAME=N. Raises UserError BAD_USAGE if it has another form."""
    found = re.fullmatch(r'([a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)=([1-9]\d*)', text)
    if not found:
        raise entry.UserError(
            entry.BAD_USAGE, f'--resource={text}: write the full name and a number, e.g. rdma/hca_shared_devices_a=1'
        )
    return found[1], int(found[4])


def environ(variables: dict[str, str], env: list[str], env_secret: list[str], *, gpus: int) -> list[dict[str, Any]]:
    """Makes the environment of a container.

    Args:
      variables: what the launcher itself sets.
      env: values of --env, NAME=value.
      env_secret: values of --env_secret, NAME=SECRET:KEY.
      gpus: GPUs of the pod; without any the program sees none of the node's.

    Raises:
      UserError: BAD_USAGE if a value has another form, or a variable is set twice.
    """
    variables = variables | {'HOME': SCRATCH, 'TMPDIR': SCRATCH}
    variables |= {'PYTHONUNBUFFERED': '1', 'PYTHONDONTWRITEBYTECODE': '1'}
    if gpus:
        variables |= {'UNET_GPUS': str(gpus)}
    else:
        variables |= {'CUDA_VISIBLE_DEVICES': '-1', 'NVIDIA_VISIBLE_DEVICES': 'void'}
    secrets = {}
    for flag, text in [*(('env', text) for text in env), *(('env_secret', text) for text in env_secret)]:
        name, equals, value = text.partition('=')
        secret, _, key = value.partition(':')
        if not re.fullmatch(r'[A-Za-z_]\w*', name) or not equals or (flag == 'env_secret' and not (secret and key)):
            form = 'NAME=value' if flag == 'env' else 'NAME=SECRET:KEY'
            raise entry.UserError(entry.BAD_USAGE, f'--{flag}={text}: write {form}')
        if name in variables or name in secrets:
            raise entry.UserError(entry.BAD_USAGE, f'--{flag}={text}: {name} is set already')
        if flag == 'env':
            variables[name] = value
        else:
            secrets[name] = {'secretKeyRef': {'name': secret, 'key': key}}
    plain = [{'name': name, 'value': literal(value)} for name, value in variables.items()]
    return plain + [{'name': name, 'valueFrom': source} for name, source in secrets.items()]


def volumes(pvc: list[str], host_path: list[str]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Makes the user's volumes.

    Args:
      pvc: values of --pvc, CLAIM:/path[:ro].
      host_path: values of --host_path, /of/the/node:/path[:ro].

    Returns:
      The volumes, and the mounts of these and of the two that every pod has.

    Raises:
      UserError: BAD_USAGE if a value has another form, or two are mounted at one place.
    """
    made: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = [
        {'name': 'scratch', 'mountPath': SCRATCH},
        {'name': 'shm', 'mountPath': '/dev/shm'},
    ]
    given = [('pvc', text) for text in pvc] + [('host_path', text) for text in host_path]
    for number, (flag, text) in enumerate(given):
        found = re.fullmatch(r'([^:]+):(/[^:]+?)/*(:ro)?', text)
        if not found or (flag == 'host_path' and not text.startswith('/')):
            form = 'CLAIM:/path[:ro]' if flag == 'pvc' else '/of/the/node:/path[:ro]'
            raise entry.UserError(entry.BAD_USAGE, f'--{flag}={text}: write {form}')
        source, path, read_only = found.groups()
        if flag == 'pvc' and (not re.fullmatch(r'[a-z0-9]([-a-z0-9.]*[a-z0-9])?', source) or len(source) > 253):
            raise entry.UserError(entry.BAD_USAGE, f'--pvc={text}: {source!r} is no name of a claim')
        if any(mount['mountPath'] == path for mount in mounts):
            raise entry.UserError(entry.BAD_USAGE, f'--{flag}={text}: {path} is mounted already')
        kind = {'persistentVolumeClaim': {'claimName': source}} if flag == 'pvc' else {'hostPath': {'path': source}}
        made.append({'name': f'volume-{number}', **kind})
        mounts.append({'name': f'volume-{number}', 'mountPath': path, **({'readOnly': True} if read_only else {})})
    return made, mounts


def mount_of(path: str, mounts: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the mount that holds a path; None if it lies in the image, or in what every pod has for itself."""
    holding = [
        mount
        for mount in mounts
        if mount['name'] not in ('scratch', 'shm') and f'{path}/'.startswith(mount['mountPath'] + '/')
    ]
    return max(holding, key=lambda mount: len(mount['mountPath']), default=None)


def node_label(text: str) -> tuple[str, str]:
    """Splits a value of --node_selector, label=value. Raises UserError BAD_USAGE if it has another form."""
    name, equals, value = text.partition('=')
    if not (name and equals and re.fullmatch(r'([A-Za-z0-9]([-\w.]{0,61}[A-Za-z0-9])?)?', value)):
        raise entry.UserError(entry.BAD_USAGE, f'--node_selector={text}: write label=value')
    return name, value


def toleration(text: str) -> dict[str, str]:
    """Makes a toleration of a value of --toleration, key[=value]:Effect. Raises UserError BAD_USAGE for other forms."""
    found = re.fullmatch(r'([^=:]+)(?:=([^:]*))?:(NoSchedule|NoExecute|PreferNoSchedule)', text)
    if not found:
        raise entry.UserError(
            entry.BAD_USAGE, f'--toleration={text}: write key:NoSchedule or key=value:NoSchedule (or NoExecute)'
        )
    key, value, effect = found.groups()
    operator = {'operator': 'Exists'} if value is None else {'operator': 'Equal', 'value': value}
    return {'key': key, **operator, 'effect': effect}
