"""How other programs read a source's Delta table: what to type in DuckDB, Polars, pandas and Spark.

Knows their ways to name a store. Prints no secret: each finds its credentials in the environment or on the node.
"""

from collections.abc import Mapping

# None of them belongs into a command that is shown.
_SECRET = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
# For Spark 4.0; could not be tried, only the table's files were read in Spark.
_SPARK = "io.delta:delta-spark_2.13:4.0.0,org.apache.hadoop:hadoop-aws:3.4.1"


def ways_to_read(uri: str, runs: str, options: Mapping[str, str]) -> dict[str, str]:
    """By the program's name, what reads a Delta table at ``uri``. ``runs``: the folder of the runs, which hold classes.

    ``options`` are those of `Store.delta_options`.
    """
    shown = {name: value for name, value in options.items() if name not in _SECRET}
    said = f", storage_options={shown}" if shown else ""
    return {
        "DuckDB": _duckdb(uri, shown),
        "DuckDB, with the classes": (
            f"SELECT s.*, r.vocab AS classes_of_probs FROM delta_scan('{uri}') s\n"
            f"JOIN read_json('{runs}/*/run.json') r USING (run_id);"
        ),
        "Polars": f'import polars\npolars.scan_delta("{uri}"{said}).collect()',
        "pandas": (
            f'from deltalake import DeltaTable\nDeltaTable("{uri}"{said}).to_pandas(columns=["uri", "label", "night"])'
        ),
        "Spark": _spark(uri, shown),
    }


def _duckdb(uri: str, options: Mapping[str, str]) -> str:
    lines = ["INSTALL delta; LOAD delta;"]
    if options:
        endpoint = options["aws_endpoint_url"]
        secret = ["TYPE s3", "PROVIDER credential_chain", f"REGION '{options['aws_region']}'"]
        secret += [f"ENDPOINT '{endpoint.split('://', 1)[-1]}'", "URL_STYLE 'path'"]
        secret += ["USE_SSL false"] if endpoint.startswith("http://") else []
        lines = ["INSTALL delta; LOAD delta; INSTALL aws; LOAD aws;", f"CREATE SECRET ({', '.join(secret)});"]
    return "\n".join([*lines, f"SELECT uri, label, confidence, night FROM delta_scan('{uri}');"])


def _spark(uri: str, options: Mapping[str, str]) -> str:
    conf = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    }
    if options:
        conf |= {
            "spark.hadoop.fs.s3a.endpoint": options["aws_endpoint_url"],
            "spark.hadoop.fs.s3a.endpoint.region": options["aws_region"],
            "spark.hadoop.fs.s3a.path.style.access": "true",
        }
    flags = " ".join(f"--conf {name}={value}" for name, value in conf.items())
    where = f"s3a://{uri.removeprefix('s3://')}" if uri.startswith("s3://") else uri
    return f'pyspark --packages {_SPARK} {flags}\nspark.read.format("delta").load("{where}")'
