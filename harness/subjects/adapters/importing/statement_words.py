"""The words by which a statement at the top level of a module is known to define, to act, or to read a network."""

# fmt: off
# Calls that neither read, nor wait, nor train. Of anything else it is assumed that it may.
CHEAP_BUILTINS = frozenset((
    "abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "getattr",
    "hasattr", "int", "isinstance", "issubclass", "len", "list", "map", "max", "min", "object", "pow", "print",
    "property", "range", "repr", "reversed", "round", "set", "setattr", "slice", "sorted", "str", "sum",
    "super", "tuple", "type", "vars", "zip",
))
CHEAP_ROOTS = frozenset((
    "F", "argparse", "collections", "dataclasses", "enum", "functools", "itertools", "logging", "math", "nn",
    "np", "numpy", "os", "pathlib", "platform", "random", "re", "sys", "time", "torch", "types", "typing",
    "warnings",
))
CHEAP_NAMES = frozenset((
    "Literal", "NewType", "ParamSpec", "Path", "SimpleNamespace", "TypeVar", "ArgumentParser", "defaultdict",
    "deque", "namedtuple", "partial", "getLogger", "OrderedDict", "NamedTuple", "TypedDict", "field", "Enum",
))
CONFIG_ENDS = (
    "config", "args", "settings", "params", "parameters", "options", "conf", "cfg",
)  # of the classes and functions that make a configuration
READS = frozenset((
    "load", "loadtxt", "open", "memmap", "fromfile", "genfromtxt", "system", "popen", "makedirs", "mkdir",
    "remove", "exit", "_exit", "init_process_group", "save", "read", "read_text", "read_bytes", "readlines",
    "parse_args", "parse_known_args", "compile", "exec", "sleep", "listdir", "scandir", "walk", "chdir",
    "init_device_mesh", "set_device", "synchronize",
))
# What goes to a network: never run at import, not even if something needs it.
REMOTE = frozenset((
    "get_encoding", "encoding_for_model", "from_pretrained", "load_dataset", "urlretrieve", "urlopen",
    "hf_hub_download", "snapshot_download", "download", "get", "post", "init", "login", "input",
))
# fmt: on
