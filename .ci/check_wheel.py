"""Check that a wheel holds the one top-level package `quantcli`, with its data."""

import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
top = {name.split("/")[0] for name in names if ".dist-info/" not in name}
if top != {"quantcli"}:
    sys.exit(f"{sys.argv[1]}: expected the top-level package quantcli alone, found {', '.join(sorted(top))}")
data = {
    "quantcli/conversion/recipes.toml",
    "quantcli/architectures/models/llama.toml",
    "quantcli/architectures/defaults/llama.toml",
    "quantcli/architectures/pre_tokenizers.toml",
    "quantcli/py.typed",
    "quantcli/quality/texts/subjects/law.txt",
}
if not data <= set(names):
    sys.exit(f"{sys.argv[1]}: missing {', '.join(sorted(data - set(names)))}")
print(f"{len(names)} files, all of them in quantcli")
