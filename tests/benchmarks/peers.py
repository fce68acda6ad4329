"""What a user would write or pick instead of `melanoma score`: tests/benchmarks/scoring.py runs each in a process.

python -m tests.benchmarks.peers NAME MANIFEST NETWORK SIZE CORES OUT

MANIFEST is a Parquet file with a column `image_uri`, NETWORK a .keras file for uint8 RGB [n, SIZE, SIZE, 3]. All of
them fetch the same objects from the same store and ask the same network; each is written as its documentation shows,
gets all cores, and resizes in its usual way. The logits go into Parquet below OUT. It prints, as JSON, the seconds that
it took once its libraries were loaded and its engine had started.
"""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

BATCH = 32


def ray_data(uris: list[str], network: str, size: int, cores: int, out: str) -> float:
    """Ray Data's documented way: `read_images`, then `map_batches` with a class that holds the model.

    https://docs.ray.io/en/latest/data/batch_inference.html
    """
    import pyarrow.fs
    import ray

    class Network:
        def __init__(self) -> None:
            import keras

            self.model = keras.saving.load_model(network)

        def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"logits": self.model.predict(batch["image"], batch_size=BATCH, verbose=0)}

    ray.init(address="local", num_cpus=max(2, cores), include_dashboard=False, log_to_driver=False)
    filesystem = None
    if uris[0].startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL")
        filesystem = pyarrow.fs.S3FileSystem(endpoint_override=endpoint)
        uris = [uri.removeprefix("s3://") for uri in uris]
    began = time.monotonic()
    images = ray.data.read_images(uris, size=(size, size), mode="RGB", filesystem=filesystem)
    # A core has to be left for reading, or the pool holds them all and nothing moves.
    images.map_batches(Network, batch_size=BATCH, concurrency=max(1, cores - 1)).write_parquet(out)
    return time.monotonic() - began


def tf_data(uris: list[str], network: str, size: int, cores: int, out: str) -> float:
    """`tf.data` with `model.predict`. https://www.tensorflow.org/guide/data_performance

    TensorFlow itself reads no s3:// any more: the bytes come by boto3.
    """
    import keras
    import tensorflow as tf

    model = keras.saving.load_model(network)
    read = _reader()

    def decoded(uri: Any) -> Any:
        data = tf.numpy_function(lambda name: read(name.decode()), [uri], tf.string)
        picture = tf.io.decode_image(data, channels=3, expand_animations=False)
        picture = tf.cast(tf.clip_by_value(tf.round(tf.image.resize(picture, (size, size))), 0, 255), tf.uint8)
        return tf.ensure_shape(picture, (size, size, 3))

    began = time.monotonic()
    images = tf.data.Dataset.from_tensor_slices(uris).map(decoded, num_parallel_calls=tf.data.AUTOTUNE)
    logits = model.predict(images.batch(BATCH).prefetch(tf.data.AUTOTUNE), verbose=0)
    _write(out, uris, logits)
    return time.monotonic() - began


def pyspark(uris: list[str], network: str, size: int, cores: int, out: str) -> float:
    """A pandas UDF of iterators, which loads the model once a task.

    https://spark.apache.org/docs/latest/api/python/user_guide/sql/arrow_pandas.html
    """
    import pandas as pd
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import pandas_udf

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = SparkSession.builder.master(f"local[{cores}]").config("spark.ui.enabled", "false").getOrCreate()
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(BATCH))

    def logits(batches: Iterator[pd.Series]) -> Iterator[pd.Series]:
        import keras

        model = keras.saving.load_model(network)
        read = _reader()
        for batch in batches:
            pictures = np.stack([_with_pillow(read(uri), size) for uri in batch])
            yield pd.Series(list(model.predict(pictures, verbose=0).astype(float)))

    predict = pandas_udf(logits, "array<double>")
    began = time.monotonic()
    frame = spark.createDataFrame([(uri,) for uri in uris], ["image_uri"]).repartition(cores)
    frame.withColumn("logits", predict("image_uri")).write.parquet(out)
    return time.monotonic() - began


def daft(uris: list[str], network: str, size: int, cores: int, out: str) -> float:
    """Daft: its own download, decoding and resizing, and a class that holds the model.

    https://docs.daft.ai/en/stable/examples/image-generation/
    """
    import daft as engine
    from daft.functions import decode_image, download, resize
    from daft.io import IOConfig, S3Config

    @engine.cls(max_concurrency=cores, use_process=True)
    class Network:
        def __init__(self) -> None:
            import keras

            self.model = keras.saving.load_model(network)

        @engine.method.batch(return_dtype=engine.DataType.list(engine.DataType.float64()), batch_size=BATCH)
        def logits(self, images: Any) -> Any:
            pictures = np.stack(images.to_pylist()).astype(np.uint8)
            return self.model.predict(pictures, verbose=0).astype(float).tolist()

    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    reading = IOConfig(s3=S3Config(endpoint_url=endpoint, force_virtual_addressing=False))
    began = time.monotonic()
    frame = engine.from_pydict({"image_uri": uris})
    pictures = resize(decode_image(download(engine.col("image_uri"), io_config=reading), mode="RGB"), size, size)
    frame = frame.with_column("image", pictures).with_column("logits", Network().logits(engine.col("image")))
    frame.exclude("image").write_parquet(out)
    return time.monotonic() - began


PEERS: dict[str, Callable[[list[str], str, int, int, str], float]] = {
    "Ray Data, read_images and map_batches": ray_data,
    "tf.data and model.predict": tf_data,
    "PySpark, pandas UDF": pyspark,
    "Daft": daft,
}


def _reader() -> Callable[[str], bytes]:
    """What a user would write to read an object or a file."""
    import boto3

    client = boto3.client("s3") if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_PROFILE") else None

    def read(uri: str) -> bytes:
        if uri.startswith("s3://"):
            assert client is not None
            bucket, _, key = uri.removeprefix("s3://").partition("/")
            return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())
        return Path(uri).read_bytes()

    return read


def _with_pillow(data: bytes, size: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size)))


def _write(out: str, uris: list[str], logits: np.ndarray) -> None:
    Path(out).mkdir(parents=True)
    pq.write_table(pa.table({"image_uri": uris, "logits": list(logits)}), Path(out) / "part-0.parquet")


def main() -> None:
    name, manifest, network, size, cores, out = sys.argv[1:]
    uris = pq.read_table(manifest, columns=["image_uri"])["image_uri"].to_pylist()
    print(json.dumps({"seconds": PEERS[name](uris, network, int(size), int(cores), out)}))


if __name__ == "__main__":
    main()
