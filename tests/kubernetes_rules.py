"""What the API server and the cluster would refuse or not forgive, checked offline.

    problems = kubernetes_rules.problems(list(yaml.safe_load_all(text)), '1.34')

The API's own schemas come from kubernetes-validate. That of JobSet is written down here from
https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2. The rules that no schema holds are those of the API server's
validation (pkg/apis/batch/validation, pkg/apis/core/validation) as far as these manifests come into touch with them.
"""

import re

import jsonschema
import kubernetes_validate

DNS_LABEL = re.compile(r'[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?')
LABEL_VALUE = re.compile(r'([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?')
QUANTITY = re.compile(r'\d+(\.\d+)?([numkMGTPE]|[KMGTPE]i)?')
ENV_NAME = re.compile(r'[-._a-zA-Z][-._a-zA-Z0-9]*')


def _object(required: tuple[str, ...] = (), **properties) -> dict:
    return {
        'type': 'object',
        'properties': properties,
        'required': list(required),
        'additionalProperties': False,
    }


_TEXT, _COUNT, _FLAG = {'type': 'string'}, {'type': 'integer', 'minimum': 0}, {'type': 'boolean'}
_TEXTS = {'type': 'array', 'items': _TEXT}
_RULE = _object(
    ('name', 'action'),
    name={'type': 'string', 'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'},
    action={
        'enum': [
            'FailJobSet',
            'RestartJobSet',
            'RestartJobSetAndIgnoreMaxRestarts',
            'RestartJob',
            'RestartJobAndIgnoreMaxRestarts',
        ]
    },
    onJobFailureReasons={
        'type': 'array',
        'items': {
            'enum': [
                'BackoffLimitExceeded',
                'DeadlineExceeded',
                'FailedIndexes',
                'MaxFailedIndexesExceeded',
                'PodFailurePolicy',
            ]
        },
    },
    onJobFailureMessagePatterns=_TEXTS,
    targetReplicatedJobs=_TEXTS,
)
JOBSET = _object(
    ('apiVersion', 'kind', 'metadata', 'spec'),
    apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
    kind={'const': 'JobSet'},
    metadata={'type': 'object'},
    spec=_object(
        ('replicatedJobs',),
        suspend=_FLAG,
        ttlSecondsAfterFinished=_COUNT,
        network=_object((), enableDNSHostnames=_FLAG, publishNotReadyAddresses=_FLAG, subdomain=_TEXT),
        successPolicy=_object(('operator',), operator={'enum': ['All', 'Any']}, targetReplicatedJobs=_TEXTS),
        failurePolicy=_object(
            (),
            maxRestarts=_COUNT,
            restartStrategy={'enum': ['Recreate', 'BlockingRecreate', 'InPlaceRestart']},
            rules={'type': 'array', 'items': _RULE},
        ),
        replicatedJobs={
            'type': 'array',
            'minItems': 1,
            'items': _object(
                ('name', 'template'),
                name=_TEXT,
                replicas=_COUNT,
                template=_object(('spec',), metadata={'type': 'object'}, spec={'type': 'object'}),
            ),
        },
    ),
)


def problems(documents: list[dict], version: str) -> list[str]:
    """Returns what is wrong with the manifests for that Kubernetes version, e.g. '1.34'; none if nothing is."""
    found = [problem for document in documents for problem in schema_problems(document, version)]
    services = {document['metadata']['name']: document for document in documents if document['kind'] == 'Service'}
    for document in documents:
        found += _metadata_problems(document)
        if document['kind'] == 'Service' and not document['metadata']['name'][0].isalpha():
            found.append('the name of a Service begins with a letter')
        if document['kind'] == 'Job':
            found += _job_problems(document['metadata']['name'], document['spec'], services)
        if document['kind'] == 'JobSet':
            found += _jobset_problems(document)
    names = [(document['kind'], document['metadata']['name']) for document in documents]
    return found + [f'{kind} {name} is there twice' for kind, name in set(names) if names.count((kind, name)) > 1]


def schema_problems(document: dict, version: str) -> list[str]:
    if document['kind'] == 'JobSet':
        found = [error.message for error in jsonschema.Draft202012Validator(JOBSET).iter_errors(document)]
        for replicated in document['spec']['replicatedJobs']:
            job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'x'}, **replicated['template']}
            found += schema_problems(job | {'metadata': {'name': 'x'}}, version)
        return found
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [f'{version}: {error.message[:300]}']
    return []


def _metadata_problems(document: dict) -> list[str]:
    metadata, found = document['metadata'], []
    if not DNS_LABEL.fullmatch(metadata['name']):
        found.append(f'name {metadata["name"]!r} is no DNS label')
    for name, value in metadata.get('labels', {}).items():
        prefix, _, rest = name.rpartition('/')
        if len(rest) > 63 or len(prefix) > 253 or not LABEL_VALUE.fullmatch(value):
            found.append(f'label {name}={value!r}')
    if document.get('apiVersion', '').startswith('jobset') and len(metadata['name']) > 63:
        found.append('name too long')
    return found


def _jobset_problems(document: dict) -> list[str]:
    found, name, spec = [], document['metadata']['name'], document['spec']
    rules = [rule['name'] for rule in spec['failurePolicy']['rules']]
    if len(set(rules)) < len(rules):
        found.append('two failure rules of one name')
    if not spec['network']['enableDNSHostnames'] or not spec['network']['publishNotReadyAddresses']:
        found.append('the pods have no names')
    for replicated in spec['replicatedJobs']:
        job = replicated['template']['spec']
        if job.get('completionMode') != 'Indexed':
            found.append('without an index, pods have no names')
        job_name = f'{name}-{replicated["name"]}-{replicated["replicas"] - 1}'
        if job['backoffLimit'] != 0:
            found.append('a worker of a gang would start again alone')
        found += _job_problems(job_name, job, None)
        found += _address_problems(job, job_name, spec['network']['subdomain'])
    return found


def _job_problems(name: str, spec: dict, services: dict[str, dict] | None) -> list[str]:
    found, template = [], spec['template']
    pod = template['spec']
    last = f'{name}-{spec.get("completions", 1) - 1}' if spec.get('completionMode') == 'Indexed' else name
    if not DNS_LABEL.fullmatch(last):
        found.append(f'{last!r} is no host name')
    if pod['restartPolicy'] != 'Never':
        found.append('a pod failure policy needs restartPolicy Never')
    if spec.get('podReplacementPolicy') != 'Failed':
        found.append('a pod failure policy needs podReplacementPolicy Failed')
    if 'backoffLimitPerIndex' in spec and spec.get('completionMode') != 'Indexed':
        found.append('backoffLimitPerIndex needs completionMode Indexed')
    rules = spec['podFailurePolicy']['rules']
    for rule in rules:
        codes, conditions = rule.get('onExitCodes'), rule.get('onPodConditions')
        if bool(codes) == bool(conditions):
            found.append('a rule has either exit codes or conditions')
        if rule['action'] not in ('FailJob', 'FailIndex', 'Ignore', 'Count'):
            found.append(f'action {rule["action"]}')
        if rule['action'] == 'FailIndex' and 'backoffLimitPerIndex' not in spec:
            found.append('FailIndex needs backoffLimitPerIndex')
        if codes:
            values = codes['values']
            if codes['operator'] not in ('In', 'NotIn') or values != sorted(set(values)) or not 0 < len(values) < 256:
                found.append(f'exit codes {codes}')
            if codes['operator'] == 'In' and 0 in values:
                found.append('exit code 0 is no failure')
    found += _pod_problems(pod)
    if services is not None and (pod.get('subdomain') or 'UNET_NUM_WORKERS' in _plain_environ(pod)):
        service = services.get(pod.get('subdomain'))
        if service is None:
            return [*found, f'no Service {pod.get("subdomain")!r} for the pods to be found by']
        if service['spec']['clusterIP'] != 'None' or not service['spec']['publishNotReadyAddresses']:
            found.append('the Service is not headless')
        labels = {**template['metadata']['labels'], 'batch.kubernetes.io/job-name': name}
        if not service['spec']['selector'].items() <= labels.items():
            found.append('the Service selects other pods')
        if service['metadata'].get('namespace') != spec.get('_namespace', service['metadata'].get('namespace')):
            found.append('the Service is in another namespace')
        found += _address_problems(spec, name, pod['subdomain'])
        (port,) = service['spec']['ports']
        if not _plain_environ(pod)['UNET_WORKER_ADDRESS'].endswith(f':{port["port"]}'):
            found.append('the Service has another port than the workers')
    return found


def _address_problems(spec: dict, job: str, subdomain: str) -> list[str]:
    """Returns whether workers look for each other under the names that the pods have."""
    environ = _plain_environ(spec['template']['spec'])
    if spec.get('completions', 1) == 1 and 'UNET_NUM_WORKERS' not in environ:
        return []
    if environ.get('UNET_NUM_WORKERS') != str(spec['completions']) or spec['parallelism'] != spec['completions']:
        return ['a gang needs all of its workers at once']
    host = environ['UNET_WORKER_ADDRESS'].partition(':')[0].replace('{index}', '1')
    return [] if host == f'{job}-1.{subdomain}' else [f'{host} is not the name of pod 1 of {job}']


def _plain_environ(pod: dict) -> dict[str, str]:
    return {entry['name']: entry['value'] for entry in pod['containers'][0].get('env', []) if 'value' in entry}


def _pod_problems(pod: dict) -> list[str]:
    found, volumes = [], [volume['name'] for volume in pod['volumes']]
    if pod.get('automountServiceAccountToken') is not False:
        found.append('the pod gets a service account token')
    security = pod['securityContext']
    if not security['runAsNonRoot'] or security['runAsUser'] == 0:
        found.append('runs as root')
    if security['seccompProfile'] != {'type': 'RuntimeDefault'}:
        found.append('no seccomp profile')
    mounted = set()
    for container in [*pod.get('initContainers', []), *pod['containers']]:
        paths = [mount['mountPath'] for mount in container['volumeMounts']]
        mounted |= {mount['name'] for mount in container['volumeMounts']}
        if len(set(paths)) < len(paths) or not all(path.startswith('/') and ':' not in path for path in paths):
            found.append(f'mount paths {paths}')
        names = [entry['name'] for entry in container['env']]
        if len(set(names)) < len(names) or not all(map(ENV_NAME.fullmatch, names)):
            found.append(f'environment {names}')
        limits, requests = container['resources']['limits'], container['resources']['requests']
        for value in [*limits.values(), *requests.values()]:
            if not QUANTITY.fullmatch(str(value)):
                found.append(f'quantity {value!r}')
        for name in {*limits, *requests}:
            if '/' in name and limits.get(name) != requests.get(name):
                found.append(f'{name}: requests must equal limits')
        rights = container['securityContext']
        if rights['allowPrivilegeEscalation'] or not rights['readOnlyRootFilesystem']:
            found.append('more rights than needed')
        kept = rights['capabilities'].get('add', [])  # RDMA needs to lock memory
        if rights['capabilities'].get('drop') != ['ALL'] or kept not in ([], ['IPC_LOCK']):
            found.append('keeps capabilities')
        if not set(paths) >= {'/dev/shm', dict_of(container['env'])['HOME'], dict_of(container['env'])['TMPDIR']}:
            found.append('nowhere to write to')
    if mounted != set(volumes) or len(set(volumes)) < len(volumes):
        found.append(f'volumes {volumes}, mounted {mounted}')
    if not all(map(DNS_LABEL.fullmatch, volumes)):
        found.append(f'volume names {volumes}')
    for toleration in pod.get('tolerations', []):
        if toleration['operator'] == 'Exists' and 'value' in toleration:
            found.append('a toleration that exists has no value')
    return found


def dict_of(env: list[dict]) -> dict[str, str]:
    return {entry['name']: entry.get('value', '') for entry in env}


def expand(text: str, environ: dict[str, str]) -> str:
    """Expands a word of a command as Kubernetes does: it replaces $(NAME) where NAME is known, and $$ by $.

    Source: third_party/forked/golang/expansion in https://github.com/kubernetes/kubernetes.
    """

    def replace(found: re.Match) -> str:
        if found.group() == '$$':
            return '$'
        return environ.get(found.group(1), found.group())

    return re.sub(r'\$\$|\$\(([^)]*)\)', replace, text)
