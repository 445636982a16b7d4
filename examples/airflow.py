"""The job as an Airflow DAG: one run at a time, and 75, which is temporary, is a skipped task and no failure.

Copy this to dags/user_events.py. The worker needs the checkout with its .venv in /opt/user-events, and
/var/lib/user-events, where the ledger stays; with several workers, give the task a queue that one of them serves. Make
two connections, `iterable` and `user_events_db`, whose passwords are the API key and DATABASE_URL: Airflow masks
passwords only.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow import DAG
from airflow.providers.standard.operators.bash import BashOperator  # before Airflow 3: airflow.operators.bash

with DAG(
    dag_id="user_events",
    schedule="*/15 * * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,  # a run reads all that is new, so missed ones need not be made up for
    max_active_runs=1,
):
    BashOperator(
        task_id="sync",
        bash_command="/opt/user-events/.venv/bin/python /opt/user-events/main.py --quiet",
        env={
            "ITERABLE_API_KEY": "{{ conn.iterable.password }}",
            "DATABASE_URL": "{{ conn.user_events_db.password }}",
            "OUTPUT_DIR": "/var/lib/user-events",
            "EXIT_ON_REJECTED": "new",
            "MAX_RUN_MINUTES": "60",
        },
        append_env=True,
        skip_on_exit_code=[75],
        retries=0,
        execution_timeout=timedelta(minutes=75),
    )
