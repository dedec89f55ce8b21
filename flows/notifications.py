"""`python -m flows.notifications`: Prefect sends failures, decisions and missed runs to one address.

In: the address in CLIP4VLA_NOTIFY_URL, and the server in PREFECT_API_URL. Out: a block with the address and an
automation for each kind of message on that server, which sends the messages by itself from then on. Run it again to
change the address.
"""

import os
from contextlib import suppress
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID

from httpx import HTTPError, HTTPStatusError
from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.blocks.abstract import NotificationError
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.events.actions import SendNotification
from prefect.exceptions import PrefectException

from clip4vla.utils.variables import NOTIFY_URL, warn_of_unread

SERVER_VARIABLE = "PREFECT_API_URL"
BLOCK = "clip4vla"
Sender = CustomWebhookNotificationBlock | SlackWebhook
SLACK_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")

PROMOTED, REFUSED = "clip4vla.promoted", "clip4vla.refused"
"""Events about a version of a registered model."""

NIGHTLY = "nightly"
"""The deployment that is missed when it does not start."""
NIGHT = timedelta(hours=25)
"""Time within which the nightly run starts again; an hour of it is for runs that it has to wait for."""
LATE = timedelta(hours=1)
"""How long a run that is due may wait for a worker."""


def emit_decision(model: str, version: str, promoted: bool, report: str) -> None:
    """Tell Prefect's server that a version became the champion of `model`, or was refused.

    Args:
        model: name of the registered model.
        version: its version.
        promoted: whether it is the champion now.
        report: the decision with its reasons, in Markdown.
    """
    emit_event(
        PROMOTED if promoted else REFUSED,
        resource={"prefect.resource.id": f"clip4vla.model.{model}", "prefect.resource.name": model},
        payload={"version": version, "report": report},
    )


def set_up(address: str, night: timedelta = NIGHT, late: timedelta = LATE) -> list[str]:
    """Send a first message to `address`, then have the server send all others there.

    Args:
        address: see `block_for`.
        night: time within which the nightly run starts again.
        late: how long a run that is due may wait for a worker.

    Returns:
        The names of the server's automations for it.

    Raises:
        ValueError: nothing can be sent to the address.
    """
    block = block_for(address)
    _send_first_message(block)
    block_id = block.save(BLOCK, overwrite=True)
    assert isinstance(block_id, UUID)  # outside of an event loop it is no coroutine
    wanted = automations(block_id, night, late)
    with get_client(sync_client=True) as client:
        for automation in wanted:
            for old in client.read_automations_by_name(automation.name):
                client.delete_automation(old.id)
            client.create_automation(automation)
    for kind in (SlackWebhook, CustomWebhookNotificationBlock):
        if not isinstance(block, kind):
            with suppress(ValueError):  # there is none of this kind
                kind.delete(BLOCK)
    return [automation.name for automation in wanted]


def block_for(address: str) -> Sender:
    """The block that sends to `address`.

    Args:
        address: of a web page that takes messages, as JSON with `subject`, `body` and `text` (both of them), or any
            other of Apprise's addresses, such as `mailtos://USER:PASSWORD@HOST?from=A&to=B`.

    Raises:
        ValueError: it is none.
    """
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and parts.hostname not in SLACK_HOSTS:
        message = {"subject": "{{subject}}", "body": "{{body}}", "text": "{{subject}}\n{{body}}"}
        secrets = {"address": address}  # the only field that the server encrypts
        return CustomWebhookNotificationBlock(name=BLOCK, url="{{address}}", json_data=message, secrets=secrets)
    from apprise import Apprise

    if Apprise.instantiate(address) is None:
        raise ValueError(f"{NOTIFY_URL} is no address of a webhook (https://...), of Slack or of Apprise")
    return SlackWebhook(url=address)  # Prefect has no block for mail by SMTP; this one knows all that Apprise does


def automations(block: UUID, night: timedelta, late: timedelta) -> list[AutomationCore]:
    """One automation for each kind of message, all sent by `block`, the id of a block on the server."""
    runs = {"prefect.resource.id": "prefect.flow-run.*"}
    ended = "The run {{ flow_run.name }} of {{ flow.name }}: {{ flow_run.state.message }}\n{{ flow_run | ui_url }}"
    judged = "{{ event.payload.report }}"
    begun = {f"prefect.flow-run.{state}" for state in ("Pending", "Running", "Cancelling", "Cancelled")}
    return [
        _automation(
            "failed",
            EventTrigger(expect={"prefect.flow-run.Failed"}, match=runs),
            block,
            "{{ flow.name }} failed",
            ended,
        ),
        _automation(
            "crashed",
            EventTrigger(expect={"prefect.flow-run.Crashed"}, match=runs),
            block,
            "{{ flow.name }} crashed",
            ended,
        ),
        _automation(
            "late",
            EventTrigger(
                after={"prefect.flow-run.Late"},
                expect=begun,
                match=runs,
                for_each={"prefect.resource.id"},
                posture=Posture.Proactive,
                within=late,
            ),
            block,
            "{{ flow.name }} does not start",
            f"The run {{{{ flow_run.name }}}} of {{{{ flow.name }}}} has been due for {_hours(late)}: "
            "is a worker running?\n{{ flow_run | ui_url }}",
        ),
        _automation(
            NIGHTLY,
            EventTrigger(
                after={"prefect.flow-run.Running"},
                expect={"prefect.flow-run.Running"},
                match=runs,
                match_related={"prefect.resource.role": "deployment", "prefect.resource.name": NIGHTLY},
                for_each={"related:deployment:prefect.resource.id"},
                posture=Posture.Proactive,
                within=night,
            ),
            block,
            "{{ flow.name }} did not run",
            f"{{{{ flow.name }}}}/{NIGHTLY} has not started for {_hours(night)}.\n"
            "Its last run: {{ flow_run | ui_url }}",
        ),
        _automation(
            "promoted", EventTrigger(expect={PROMOTED}), block, _version("is the champion"), judged,
        ),
        _automation(
            "refused", EventTrigger(expect={REFUSED}), block, _version("was refused"), judged,
        ),
    ]  # fmt: skip


def _automation(name: str, trigger: EventTrigger, block: UUID, subject: str, body: str) -> AutomationCore:
    action = SendNotification(block_document_id=block, subject=f"CLIP4VLA: {subject}", body=body)
    return AutomationCore(name=f"clip4vla {name}", trigger=trigger, actions=[action])


def _version(what: str) -> str:
    return f"{{{{ event.resource.name }}}} version {{{{ event.payload.version }}}} {what}"


def _hours(time: timedelta) -> str:
    return f"{time / timedelta(hours=1):.3g} h"


def _send_first_message(block: Sender) -> None:
    """Show that the address takes messages. The errors of httpx and Apprise may name it, and it may hold a password.

    Raises:
        ValueError: it doesn't take them.
    """
    failed = f"a first message could not be sent to the address in {NOTIFY_URL}"
    try:
        with block.raise_on_failure():
            block.notify("Failures, decisions and missed runs are sent here from now on.", "CLIP4VLA: notifications")
    except HTTPStatusError as error:
        raise ValueError(f"{failed}: status {error.response.status_code}") from error
    except (HTTPError, NotificationError) as error:
        raise ValueError(f"{failed}: {type(error).__name__}") from error


def main() -> None:
    """Set the notifications up, with the settings of the environment."""
    warn_of_unread()
    address = os.environ.get(NOTIFY_URL, "")
    missing = [name for name in (NOTIFY_URL, SERVER_VARIABLE) if not os.environ.get(name)]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} not set: `set -a; . ./team.env; set +a` first")
    try:
        for name in set_up(address):
            print(name)
    except (ValueError, PrefectException, HTTPError) as error:
        raise SystemExit(f"no notifications were set up: {error}") from None


if __name__ == "__main__":
    main()
