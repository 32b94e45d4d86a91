"""Drawn signals for the modalities of which no recording may be shipped: to try things on, never to judge them by.

Each is a plain random process with the rhythm, range and noise of the real thing; the same seed gives the same signal,
and every name begins with `synthetic`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.errors import SignalError
from genmote.signals.kinds import Field, FieldType, Frames, Grid, Records, Series, Signal

Draw = np.random.Generator
Floats = NDArray[np.float64]
START = 1_767_225_600.0  # 2026-01-01, UTC
DAY = 86400.0


def draw(name: str, seed: int = 0) -> Signal:
    """The synthetic signal `name`. SignalError where there is none."""
    if name not in MAKERS:
        raise SignalError(f"no synthetic signal is called {name!r}; known: {', '.join(sorted(MAKERS))}")
    return MAKERS[name](np.random.default_rng([seed, *name.encode()]))


def _series(
    name: str, values: Floats, rate_hz: float, channels: Sequence[str], units: Sequence[str], step: Sequence[float]
) -> Series:
    """Rounded to the steps of a sensor."""
    steps = np.array(step)
    grid = Grid(np.round(values / steps).astype(np.int64), steps, np.zeros(len(steps)))
    return Series(f"synthetic {name}", grid.values(), rate_hz, tuple(channels), tuple(units), grid=grid)


def _records(name: str, times: Floats, columns: dict[str, tuple[FieldType, str, Sequence[object]]]) -> Records:
    fields = tuple(Field(key, type_, unit) for key, (type_, unit, _) in columns.items())
    dtypes: dict[FieldType, Any] = {"number": np.float64, "integer": np.int64, "category": object, "text": object}
    arrays = tuple(np.array(list(values), dtypes[type_]) for type_, _, values in columns.values())
    return Records(f"synthetic {name}", fields, arrays, times)


def _drift(random: Draw, count: int, back: float, spread: float) -> Floats:
    """A path that is drawn back to 0 by the share `back` in each step and moves by `spread`."""
    found, at = np.empty(count), 0.0
    for n, move in enumerate(random.normal(0, spread, count)):
        at += move - back * at
        found[n] = at
    return found


def _beats(random: Draw, seconds: float, per_minute: float) -> Floats:
    """Times of heart beats: intervals that swing with the breath."""
    times, at = [], 0.3
    while at < seconds:
        times.append(at)
        at += 60 / per_minute * (1 + 0.04 * np.sin(2 * np.pi * 0.25 * at) + random.normal(0, 0.015))
    return np.array(times)


def blood_pressure(random: Draw) -> Series:
    """In an artery: a steep rise with each beat, and a notch where the valve closes."""
    rate, seconds = 125.0, 30.0
    t = np.arange(int(rate * seconds)) / rate
    wave = np.full(len(t), 78.0) + _drift(random, len(t), 0.002, 0.08)
    for beat in _beats(random, seconds, 72):
        after = np.clip(t - beat, 0, None)
        wave += 44 * (after / 0.13) * np.exp(1 - after / 0.13) * (after < 2)
        wave += 8 * np.exp(-0.5 * ((after - 0.38) / 0.03) ** 2)
    return _series("blood pressure", wave[:, None], rate, ["arterial pressure"], ["mmHg"], [0.1])


def spo2(random: Draw) -> Series:
    """A night with a few short falls."""
    count = 6 * 3600
    wave = 96.5 + 0.6 * _drift(random, count, 0.01, 0.1)
    for at in random.integers(600, count - 600, 9):
        wave -= random.uniform(3, 9) * np.exp(-0.5 * ((np.arange(count) - at) / 18) ** 2)
    return _series("SpO2", np.clip(wave, 70, 100)[:, None], 1.0, ["oxygen saturation"], ["%"], [1.0])


def _weeks(random: Draw, name: str, awake: float, unit: str, base: float) -> Series:
    """Hourly counts of four weeks: none at night, more on some days."""
    hours = np.arange(28 * 24) % 24
    day = np.repeat(random.gamma(6, 1 / 6, 28), 24)
    active = np.exp(-0.5 * ((hours - 13) / 4.0) ** 2) * (hours > 6) * (hours < 23)
    wave = base + random.poisson(awake * active * day * random.gamma(2, 0.5, len(hours)))
    return _series(name, wave[:, None].astype(float), 1 / 3600, [name], [unit], [1.0])


def steps(random: Draw) -> Series:
    return _weeks(random, "steps", 900, "steps/h", 0)


def calories(random: Draw) -> Series:
    return _weeks(random, "calories", 60, "kcal/h", 58)


def food_intake(random: Draw) -> Records:
    meals = ("breakfast", "lunch", "dinner", "snack")
    foods = ("porridge", "bread", "salad", "soup", "pasta", "rice and vegetables", "fish", "fruit", "yoghurt", "nuts")
    times, which = [], []
    for day in range(30):
        for meal, hour in enumerate((7.5, 12.5, 19.0, 16.0)):
            if meal < 3 or random.random() < 0.4:
                times.append(START + day * DAY + 3600 * (hour + random.normal(0, 0.4)))
                which.append(meal)
    order = np.argsort(times)
    kept = [which[n] for n in order]
    energy = [float(round(random.gamma(9, (48, 75, 85, 22)[meal]))) for meal in kept]
    columns: dict[str, tuple[FieldType, str, Sequence[object]]] = {
        "meal": ("category", "", [meals[meal] for meal in kept]),
        "food": ("category", "", [str(random.choice(foods)) for _ in kept]),
        "energy": ("number", "kcal", energy),
    }
    return _records("food intake", np.array(times)[order], columns)


def gaze(random: Draw) -> Series:
    """Rests and jumps on a screen, with the eye's tremor."""
    rate, count = 250.0, 250 * 20
    values, at = np.empty((count, 2)), np.array([960.0, 540.0])
    left = 0
    for n in range(count):
        if left == 0:
            at, left = random.uniform((200, 150), (1720, 930)), int(rate * random.gamma(4, 0.07))
            left = max(left, 20)
        left -= 1
        values[n] = at + random.normal(0, 2.5, 2)
    values = np.apply_along_axis(lambda x: np.convolve(x, np.ones(5) / 5, "same"), 0, values)
    return _series("gaze", values, rate, ["x", "y"], ["px", "px"], [0.1, 0.1])


def facial_expression(random: Draw) -> Series:
    """Strengths of four facial action units, from 0 to 5."""
    units = ("AU1 inner brow raiser", "AU4 brow lowerer", "AU6 cheek raiser", "AU12 lip corner puller")
    rate, count = 30.0, 30 * 60
    t = np.arange(count) / rate
    values = np.abs(random.normal(0, 0.08, (count, 4)))
    for at in random.uniform(2, 58, 7):
        smile = random.uniform(1.5, 4.5) * np.exp(-0.5 * ((t - at) / random.uniform(0.4, 1.2)) ** 2)
        values[:, 2] += 0.7 * smile
        values[:, 3] += smile
    for at in random.uniform(2, 58, 4):
        values[:, random.integers(0, 2)] += 2.5 * np.exp(-0.5 * ((t - at) / 0.5) ** 2)
    return _series("facial expression", np.clip(values, 0, 5), rate, units, ("intensity",) * 4, [0.01] * 4)


def voice(random: Draw) -> Series:
    """Vowels: pulses of the voice through three resonances, with pauses."""
    rate, seconds = 8000, 4
    count = rate * seconds
    pitch = 120 + 12 * np.sin(2 * np.pi * 0.7 * np.arange(count) / rate) + _drift(random, count, 0.001, 0.02)
    phase = np.cumsum(pitch / rate)
    source = np.diff(np.floor(phase), prepend=0) + random.normal(0, 0.01, count)
    sound = np.zeros(count)
    third = count // 4
    vowels = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
    for number, formants in enumerate(vowels):
        part = source[number * third : (number + 1) * third]
        for formant in formants:
            n = np.arange(400) / rate
            part = np.convolve(part, np.exp(-300 * n) * np.sin(2 * np.pi * formant * n))[:third]
        sound[number * third : (number + 1) * third] = part * np.hanning(third) ** 0.3
    return _series("voice", 0.5 * sound[:, None] / np.abs(sound).max(), rate, ["sound"], ["full scale"], [2.0**-15])


def machine_sound(random: Draw) -> Series:
    """A motor: harmonics of its turning, noise, and a knock once a turn in the second half."""
    rate, count = 8000, 8000 * 4
    t = np.arange(count) / rate
    sound = sum(random.uniform(0.3, 1) / n * np.sin(2 * np.pi * 24.5 * n * t + n) for n in range(1, 9))
    sound = sound + random.normal(0, 0.25, count)
    turn = t * 24.5 % 1
    sound += 2.5 * np.exp(-turn * 90) * np.sin(2 * np.pi * 1900 * t) * (t > 2)
    return _series(
        "machine sound", 0.4 * sound[:, None] / np.abs(sound).max(), rate, ["sound"], ["full scale"], [2.0**-15]
    )


def control(random: Draw) -> Series:
    """A drive: steering, throttle and brake that follow a wanted speed and curvature."""
    rate, count = 10.0, 10 * 300
    wanted = np.repeat(random.uniform(5, 28, count // 150), 150)
    speed, at = np.empty(count), 8.0
    push = np.empty(count)
    for n in range(count):
        push[n] = np.clip(0.12 * (wanted[n] - at) + random.normal(0, 0.02), -1, 1)
        at += (3.0 * push[n] - 0.004 * at) / rate
        speed[n] = at
    steering = 40 * _drift(random, count, 0.02, 0.05) / (1 + speed / 10)
    values = np.column_stack([steering, 100 * np.clip(push, 0, 1), 100 * np.clip(-push, 0, 1), speed])
    names, units = ["steering angle", "throttle", "brake", "speed"], ["deg", "%", "%", "m/s"]
    return _series("control signals", values, rate, names, units, [0.1, 0.5, 0.5, 0.01])


def force_torque(random: Draw) -> Series:
    """A robot's wrist: free, a touch, a collision."""
    rate, count = 50.0, 50 * 20
    values = random.normal(0, 1.2, (count, 6))
    values[300:600, 2] -= 18 + random.normal(0, 1, 300)
    jolt = np.exp(-np.arange(120) / 14) * np.sin(np.arange(120) * 0.9)
    values[700:820] += jolt[:, None] * random.normal(0, 60, 6)
    names = ("Fx", "Fy", "Fz", "Tx", "Ty", "Tz")
    return _series("force and torque", values, rate, names, ("N",) * 3 + ("N·m",) * 3, [1.0] * 6)


def link_quality(random: Draw) -> Series:
    """A phone on the way: distance to the mast falls and grows, fading on top, the rate follows."""
    count = 900
    power = -88 - 14 * np.sin(np.arange(count) / 120) + _drift(random, count, 0.1, 1.5)
    noise = np.clip(12 + 0.55 * (power + 90) + random.normal(0, 1.5, count), -10, 30)
    rate = np.clip(9.5 * np.log2(1 + 10 ** (noise / 10)) * random.gamma(6, 1 / 6, count), 0.1, None)
    names, units = ["RSRP", "SNR", "download rate"], ["dBm", "dB", "Mbit/s"]
    return _series("link quality", np.column_stack([power, noise, rate]), 1.0, names, units, [1.0, 1.0, 0.1])


def flows(random: Draw) -> Records:
    count = 400
    times = START + np.cumsum(random.exponential(2.0, count))
    ports, weights = (443, 53, 80, 22, 1883, 123), (0.45, 0.3, 0.1, 0.05, 0.07, 0.03)
    port = random.choice(ports, count, p=weights)
    sent = random.lognormal(6.2, 1.1, count).astype(int) + 60
    columns: dict[str, tuple[FieldType, str, Sequence[object]]] = {
        "protocol": ("category", "", ["udp" if p in (53, 123) else "tcp" for p in port]),
        "source": ("category", "", [f"192.0.2.{n}" for n in random.integers(2, 12, count)]),
        "destination": ("category", "", [f"198.51.100.{n}" for n in random.integers(1, 30, count)]),
        "destination port": ("integer", "", port.tolist()),
        "duration": ("number", "s", random.exponential(1.5, count).round(3).tolist()),
        "bytes sent": ("integer", "B", sent.tolist()),
        "bytes received": ("integer", "B", (sent * random.lognormal(1.0, 0.8, count)).astype(int).tolist()),
    }
    return _records("network flows", times, columns)


def error_log(random: Draw) -> Records:
    count = 300
    times = START + np.cumsum(random.exponential(30.0, count))
    lines, severities = [], []
    for _ in range(count):
        kind = random.choice(5, p=(0.4, 0.3, 0.15, 0.1, 0.05))
        axis, value = random.integers(1, 7), random.integers(20, 95)
        severities.append(("info", "info", "warning", "error", "critical")[kind])
        lines.append(
            (
                f"axis {axis} reached position {value * 3.6:.1f} deg",
                f"heartbeat {random.integers(1000, 9999)} ok",
                f"motor {axis} temperature {value} C over limit",
                f"axis {axis} following error {value / 100:.2f} deg",
                f"emergency stop by input {axis}",
            )[kind]
        )
    columns: dict[str, tuple[FieldType, str, Sequence[object]]] = {
        "severity": ("category", "", severities),
        "message": ("text", "", lines),
    }
    return _records("error log", times, columns)


def authentication(random: Draw) -> Records:
    """Log-ins of an office, and one stretch of guessing from a single address."""
    users = ("anna", "ben", "chloe", "dev", "root", "admin")
    rows = [
        (START + random.uniform(0, DAY), str(random.choice(users[:4])), "192.0.2.7", "accepted") for _ in range(120)
    ]
    rows += [(START + random.uniform(0, DAY), str(random.choice(users[:4])), "192.0.2.9", "failed") for _ in range(14)]
    attack = START + 0.6 * DAY
    rows += [(attack + 2.0 * n, str(random.choice(users)), "203.0.113.50", "failed") for n in range(90)]
    rows.sort()
    columns: dict[str, tuple[FieldType, str, Sequence[object]]] = {
        "user": ("category", "", [row[1] for row in rows]),
        "address": ("category", "", [row[2] for row in rows]),
        "event": ("category", "", [row[3] for row in rows]),
    }
    return _records("authentication", np.array([row[0] for row in rows]), columns)


def attack(random: Draw) -> Records:
    """Connections with the kind of attack that each belongs to."""
    kinds, weights = ("normal", "port scan", "flood", "guessing"), (0.7, 0.12, 0.13, 0.05)
    kind = random.choice(kinds, 400, p=weights)
    size = {"normal": 7.0, "port scan": 3.8, "flood": 4.2, "guessing": 5.6}
    columns: dict[str, tuple[FieldType, str, Sequence[object]]] = {
        "service": (
            "category",
            "",
            ["private" if k == "port scan" else str(random.choice(["http", "dns", "ssh"])) for k in kind],
        ),
        "bytes": ("integer", "B", [int(random.lognormal(size[k], 0.6)) for k in kind]),
        "connections in 2 s": ("integer", "", [int(random.poisson(180 if k == "flood" else 4)) for k in kind]),
        "attack": ("category", "", kind.tolist()),
    }
    return _records("attack", START + np.cumsum(random.exponential(1.0, 400)), columns)


def breach_report(random: Draw) -> Records:
    ways = ("phishing", "stolen laptop", "unpatched server", "misdirected mail", "weak password")
    data = ("names and addresses", "health records", "card numbers", "access logs")
    times = START + np.sort(random.uniform(0, 365 * DAY, 60))
    way, what = random.choice(ways, 60), random.choice(data, 60)
    people = random.lognormal(6, 1.8, 60).astype(int)
    texts = [f"Through {w}, {d} of {n} people became known." for w, d, n in zip(way, what, people, strict=True)]
    columns: dict[str, tuple[FieldType, str, Sequence[object]]] = {
        "way": ("category", "", way.tolist()),
        "data": ("category", "", what.tolist()),
        "people": ("integer", "", people.tolist()),
        "report": ("text", "", texts),
    }
    return _records("breach reports", times, columns)


def smart_home(random: Draw) -> Records:
    things = ("light.kitchen", "light.bedroom", "lock.front_door", "cover.blinds", "switch.kettle")
    rows = []
    for day in range(14):
        for thing, hour in zip(things, (6.8, 22.5, 8.1, 7.0, 7.2), strict=True):
            at = START + day * DAY + 3600 * (hour + random.normal(0, 0.3))
            rows += [(at, thing, "on"), (at + random.exponential(2400), thing, "off")]
    rows.sort()
    columns: dict[str, tuple[FieldType, str, Sequence[object]]] = {
        "entity": ("category", "", [row[1] for row in rows]),
        "state": ("category", "", [row[2] for row in rows]),
    }
    return _records("smart home events", np.array([row[0] for row in rows]), columns)


def _scene(random: Draw) -> list[tuple[float, float, float, float]]:
    """Boxes on a street: place ahead and to the side, width, height, metres."""
    return [
        (random.uniform(6, 45), random.uniform(-12, 12), random.uniform(0.6, 4.5), random.uniform(1, 3))
        for _ in range(9)
    ]


def lidar(random: Draw) -> Frames:
    """Turns of a laser scanner of 16 rings on a street with boxes."""
    frames = []
    scene = _scene(random)
    azimuth = np.deg2rad(np.arange(0, 360, 0.5))
    elevation = np.deg2rad(np.linspace(-15, 3, 16))
    a, e = (x.reshape(-1) for x in np.meshgrid(azimuth, elevation))
    for turn in range(5):
        range_ = np.where(e < -0.01, 1.7 / np.sin(-np.minimum(e, -0.01)), 90.0)
        bright = np.full(len(a), 0.2)
        for ahead, side, width, height in scene:
            distance = np.hypot(ahead - turn, side)
            near = np.abs(np.angle(np.exp(1j * (a - np.arctan2(side, ahead - turn))))) < width / 2 / distance
            top = np.arctan2(height - 1.7, distance)
            hit = near & (e < top) & (distance < range_)
            range_, bright = np.where(hit, distance, range_), np.where(hit, 0.6, bright)
        seen = range_ < 80
        r = (range_ + random.normal(0, 0.02, len(a)))[seen]
        x, y, z = r * np.cos(e[seen]) * np.cos(a[seen]), r * np.cos(e[seen]) * np.sin(a[seen]), r * np.sin(e[seen])
        frames.append(np.column_stack([x, y, z, bright[seen]]).astype(np.float32))
    return Frames(
        "synthetic lidar", "points", frames, ("x", "y", "z", "reflectance"), ("m", "m", "m", ""), 0.1 * np.arange(5.0)
    )


def radar(random: Draw) -> Frames:
    """Maps of range and Doppler: a few moving echoes over noise, dB."""
    frames = []
    echoes = [(random.uniform(5, 55), random.uniform(-14, 14)) for _ in range(4)]
    distance, speed = np.arange(64)[:, None], np.arange(32)[None, :] - 16
    for n in range(10):
        power = random.exponential(1.0, (64, 32))
        for at, v in echoes:
            power += 400 * np.exp(-0.5 * ((distance - at - 0.1 * v * n) / 1.2) ** 2 - 0.5 * ((speed - v) / 0.9) ** 2)
        frames.append((10 * np.log10(power))[:, :, None].astype(np.float32))
    return Frames("synthetic radar", "grid", frames, ("power",), ("dB",), 0.1 * np.arange(10.0))


MAKERS: dict[str, Callable[[Draw], Signal]] = {
    maker.__name__.replace("_", "-"): maker
    for maker in (
        blood_pressure,
        spo2,
        steps,
        calories,
        food_intake,
        gaze,
        facial_expression,
        voice,
        machine_sound,
        control,
        force_torque,
        link_quality,
        flows,
        error_log,
        authentication,
        attack,
        breach_report,
        smart_home,
        lidar,
        radar,
    )
}
