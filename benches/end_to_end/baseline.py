"""What one would write by hand: four processes that each lock a key with SKIP LOCKED, take the next
records, sign them and COPY the signatures, all in one transaction. Prints records a second.

    baseline.py postgres://... BATCH_SIZE

Needs psycopg 3 and cryptography. It keeps fewer rules than Chancery: the least recently used key is
only likely, and a range of records is claimed by a counter, so that a crash leaves some unsigned.
"""

import multiprocessing
import sys
import time

import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PROCESSES = 4
KEYS = 100


def work(url, batch_size, seeds, last):
    keys = [Ed25519PrivateKey.from_private_bytes(seed) for seed in seeds]
    with psycopg.connect(url) as connection:
        while True:
            with connection.transaction():
                key = connection.execute(
                    "SELECT id FROM baseline_keys ORDER BY used_at LIMIT 1 FOR UPDATE SKIP LOCKED"
                ).fetchone()[0]
                until = connection.execute(
                    "SELECT nextval('baseline_next')"
                ).fetchone()[0] * batch_size
                first = until - batch_size
                if first >= last:
                    return
                records = connection.execute(
                    "SELECT id, payload FROM records WHERE id > %s AND id <= %s ORDER BY id",
                    (first, until), binary=True,
                ).fetchall()
                sign = keys[key].sign
                with connection.cursor().copy(
                    "COPY baseline (record_id, batch_id, signature) FROM STDIN (FORMAT BINARY)"
                ) as copy:
                    copy.set_types(["int8", "int8", "bytea"])
                    for record, payload in records:
                        copy.write_row((record, until // batch_size, sign(payload)))
                connection.execute(
                    "UPDATE baseline_keys SET used_at = clock_timestamp() WHERE id = %s", (key,)
                )


def main():
    url, batch_size = sys.argv[1], int(sys.argv[2])
    seeds = [bytes([n]) * 32 for n in range(KEYS)]
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE baseline (record_id BIGINT PRIMARY KEY, batch_id BIGINT NOT NULL,"
            " signature BYTEA NOT NULL)"
        )
        connection.execute(
            "CREATE TABLE baseline_keys AS SELECT n AS id, clock_timestamp() AS used_at"
            f" FROM generate_series(0, {KEYS - 1}) n"
        )
        connection.execute("CREATE SEQUENCE baseline_next")
        last = connection.execute("SELECT max(id) FROM records").fetchone()[0]
        begin = time.monotonic()
        workers = [
            multiprocessing.Process(target=work, args=(url, batch_size, seeds, last))
            for _ in range(PROCESSES)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
        took = time.monotonic() - begin
        signed = connection.execute("SELECT count(*) FROM baseline").fetchone()[0]
        records = connection.execute("SELECT count(*) FROM records").fetchone()[0]
        assert signed == records, (signed, records)
        print(f"{signed / took:.0f}")


if __name__ == "__main__":
    main()
