"""The data of a run as Croissant, the JSON-LD that dataset search engines and `mlcroissant` read.

    json.dumps(croissant(run_dir, found))       # found: what common.generate_model_card collects

It describes `data_files.csv`: a record a file, with split, path and SHA-256. The files themselves stay where they are.
Format: https://docs.mlcommons.org/croissant/docs/croissant-spec.html, version 1.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.log import file_sha256

CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
FIELDS = {"split": "sc:Text", "path": "sc:Text", "sha256": "sc:Text", "bytes": "sc:Integer"}


def croissant(run_dir: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The JSON-LD of a run's data, as plain values. Facts that nobody gave are left out: the data card names them."""
    run, facts = found["run"], found["facts"]
    table = run_dir / "data_files.csv"
    known = {"license": facts.get("data_licence"), "citeAs": facts.get("data_source")}
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{run['project']}-{run['data_version'][:12]}",
        "description": f"The files that the run with checkpoint {run['checkpoint']['sha256'][:12]} was trained and "
        f"validated on: data version {run['data_version']}.",
        "version": f"1.0.0+{run['data_version'][:12]}",
        "datePublished": run["started"][:10],
        "url": f"urn:sha256:{run['data_version']}",
        **{key: value for key, value in known.items() if value},
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": table.name,
                "name": table.name,
                "contentUrl": table.name,
                "contentSize": f"{table.stat().st_size} B",
                "encodingFormat": "text/csv",
                "sha256": file_sha256(table),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "files",
                "name": "files",
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"files/{name}",
                        "name": name,
                        "dataType": kind,
                        "source": {"fileObject": {"@id": table.name}, "extract": {"column": name}},
                    }
                    for name, kind in FIELDS.items()
                ],
            }
        ],
    }
