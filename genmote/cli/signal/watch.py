"""Watch what devices send to an MQTT broker: tell it, record it, and sound an alarm where a model finds it odd.

    genmote signal watch mqtt://broker.local/home/+/climate
    genmote signal watch mqtts://me@broker.local/plant/# --output plant.csv --seconds 3600
    genmote signal watch mqtt://broker.local/pump --detect pump.gguf --threshold 6 --json

A message is a JSON object (what is nested is named with dots), an array of numbers, numbers with commas between, or one
number; what is none is counted and told. A topic with the wildcards + and # is many, each a signal of its own. The time
is the device's where a field tells it, else that of arrival. The user and the password come from GENMOTE_MQTT_USER and
GENMOTE_MQTT_PASSWORD, or from --user and --password-file. A lost connection is made again. Memory stays the same: what
comes faster than it is judged is dropped, the oldest first, counted and told. Ctrl-C ends it with a summary. With
--json there is an object a line; `event` says of what: values, alarm, over (the end of an alarm that went on), note,
summary.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._output import Output, check_place
from genmote.errors import UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.signals.live.mqtt import Subscription


@dataclass(frozen=True, kw_only=True)
class Settings:
    topic: str = setting("mqtt://HOST[:PORT]/TOPIC, or mqtts:// for TLS; + and # stand for others", positional=True)
    seconds: float | None = setting("end after so many (default: with Ctrl-C)", default=None)
    every: float = setting("seconds from one line of a topic to its next", default=5.0)
    rate: float = setting("messages are samples of so many Hz, whatever their times (0: by their times)", default=0.0)
    output: Path | None = setting("record it, .csv or .gmsc; a file for each topic", short="-o", default=None)
    max_error: float = setting("the most that a sample in a .gmsc may be off, in its unit (0: exact)", default=0.0)
    detect: Path | None = setting("a model that says how odd a sample is; tell alarms alone", default=None)
    threshold: float | None = setting("the score from which on a sample is an alarm (nats)", default=None)
    clean: Path | None = setting("a recording without anything odd, which tells the threshold", default=None)
    quantile: float = setting("of the clean recording's scores, which is the threshold", default=0.999)
    smooth: int = setting("samples that a score is averaged over", default=8)
    user: str | None = setting("the user's name (default: GENMOTE_MQTT_USER)", default=None)
    password_file: Path | None = setting(
        "a file whose first line is the password (default: GENMOTE_MQTT_PASSWORD)", default=None
    )
    plain_password: bool = setting("send the password also without TLS", default=False)
    ca: Path | None = setting("certificates of authorities (default: the system's)", default=None)
    tries: int = setting("to connect for the first time (0: for ever)", default=5)

    def faults(self) -> Iterable[str]:
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            yield f"seconds={self.seconds}: use more than 0, or leave it out"
        if not 0 < self.every < float("inf"):
            yield f"every={self.every}: use more than 0"
        if not 0 <= self.rate < 1e9:
            yield f"rate={self.rate}: use 0 (by their times) or the samples of a second"
        if self.tries < 0:
            yield f"tries={self.tries}: use 0 (for ever) or more"
        if not 0 <= self.max_error < float("inf"):
            yield f"max_error={self.max_error}: use 0 (exact) or more, such as 0.01"
        if not 0 < self.quantile < 1:
            yield f"quantile={self.quantile}: use one between 0 and 1, such as 0.999"
        if self.smooth < 1:
            yield f"smooth={self.smooth}: use 1 or more"
        if self.output is not None and self.output.suffix.lower() not in (".csv", ".gmsc"):
            yield f"output={self.output}: wanted a name that ends in .csv or .gmsc"
        if self.detect is None and (self.threshold is not None or self.clean is not None):
            yield "threshold and clean are of a model: name one with --detect"
        if self.detect is not None and (self.threshold is None) == (self.clean is None):
            yield "detect wants a threshold, or a clean recording that tells it: one of --threshold and --clean"


def run(settings: Settings, out: Output) -> int:
    from genmote.cli.signal._alarms import Alarms
    from genmote.cli.signal._desk import Desk
    from genmote.signals.live.recording import Recorder
    from genmote.signals.live.watching import Watch

    recorder = None
    if settings.output is not None:
        check_place(settings.output, "--output")
        recorder = Recorder(settings.output, max_error=settings.max_error)
    subscription = source(settings)
    alarms = None
    if settings.detect is not None:
        alarms = Alarms(settings.detect, settings.threshold, settings.clean, settings.quantile, settings.smooth)
    desk = Desk(out, Watch(subscription, rate_hz=settings.rate), recorder, alarms, settings.every)
    status = 0
    try:
        with subscription:
            desk.follow(settings.seconds)
    except KeyboardInterrupt:
        pass  # that is how a watch ends
    except SystemExit as leave:  # SIGTERM
        status = leave.code if isinstance(leave.code, int) else 1
    finally:
        desk.close()
    desk.summary()
    return status


def source(settings: Settings) -> Subscription:
    from genmote.signals.live import mqtt

    where = mqtt.address(settings.topic)
    user = settings.user or where.user or os.environ.get("GENMOTE_MQTT_USER") or None
    password = os.environ.get("GENMOTE_MQTT_PASSWORD") or None
    if settings.password_file is not None:
        try:
            password = (settings.password_file.read_text("utf-8").splitlines() or [""])[0]
        except (OSError, UnicodeDecodeError) as fault:
            why = fault.strerror if isinstance(fault, OSError) else "not UTF-8"
            raise UserError(
                f"{settings.password_file}: cannot be read ({why}): wanted a line with a password"
            ) from None
    if password is not None and user is None:
        raise UserError("a password without a user: name one with --user, or set GENMOTE_MQTT_USER")
    if settings.ca is not None and not where.tls:
        raise UserError("--ca is for TLS: write mqtts:// instead of mqtt://")
    login = mqtt.Login(user, password, settings.plain_password)
    return mqtt.Subscription(where, login, context=_context(settings.ca) if where.tls else None, tries=settings.tries)


def _context(ca: Path | None) -> Any:
    import ssl

    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as fault:  # no file, or none of certificates
        raise UserError(f"{ca}: cannot be read ({fault.strerror or fault}): wanted certificates in PEM form") from None
