"""What is refused by a rule, and what is not: shapes, noise at any rate, sensors that are not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from genmote.describe import cannot, quality, sensors, wording
from genmote.signals import modality
from genmote.signals.kinds import Field, Frames, Records, Series
from tests.describe.tiny import wave

SHAPED = (*cannot.NEEDS_SHAPE, "rhythm", "findings", "report_de", "movements", "tempo")
SLOTS = {"channel": "level", "other": "height", "word": "on", "guess": "rising"}


def series(names: str, units: str, rate_hz: float = 50.0, samples: int = 600) -> Series:
    """A wave in each channel: commas divide names and units."""
    channels, counted = tuple(names.split(",")), tuple(units.split(","))
    at = np.arange(samples)[:, None] / 40
    values = np.sin(at * (2 + np.arange(len(channels)))) + 0.1 * np.cos(9 * at)
    return Series("recording", values.astype(np.float32), rate_hz, channels, counted)


ECG = series("I,II,aVR,V1,V2", "mV,mV,mV,mV,mV", 500)
ROOM = series("temperature,humidity,CO2", "°C,%,ppm", 1 / 60)
WATCH = series("ax,ay,az,wx,wy,wz", "g,g,g,rad/s,rad/s,rad/s")
POWER = series("power", "W", 1 / 60)
PULSE = series("reflected light", "counts", 100)
ADC = series("value", "V", 250)
FLOWS = Records(
    "connections",
    (Field("protocol", "category"), Field("bytes sent", "number", "B")),
    (np.array(["tcp", "udp"], object), np.array([1.0, 2.0])),
)
HOME = Records("home", (Field("entity", "category"), Field("state", "category")), (np.array(["a"], object),) * 2)


def test_a_flat_line_is_not_described() -> None:
    flat = Series("f", np.full((300, 2), 3, np.float32), 50.0, ("a", "b"), ("V", "V"))
    assert quality.check([flat], shape=True).why == "the signal is a flat line"
    gone = replace(flat, values=np.full((300, 2), np.nan, np.float32))
    assert quality.check([gone]).why == "the signal has no sample for 100% of the time"
    both = replace(flat, values=np.stack([flat.values[:, 0], gone.values[:, 0]], axis=1))
    assert quality.check([both], shape=True).why == "a is a flat line; b has no sample for 100% of the time"
    assert quality.check([wave(), flat], shape=True).why == "signal 2: the signal is a flat line"
    assert quality.check([replace(flat, values=flat.values[:, :1], channels=("a",), units=("V",))], shape=True).why == (
        "a is a flat line"
    )


def test_one_sample_has_a_level_and_no_shape() -> None:
    one = series("level", "m").part(0, 1)
    why = "level has too few samples for a shape: 1"
    assert quality.check([one], shape=True).why == why and not quality.check([one], "What is the mean of level?").why
    assert not quality.check([series("level", "m").part(0, 4)], shape=True).why


def test_what_is_asked_of_a_lead_that_is_missing() -> None:
    series = wave(channels=("I", "II", "V1"))
    series.values[:, 2] = 0
    assert quality.check([series], "How many beats has V1?").why == "V1 is a flat line"
    found = quality.check([series], "Are beats of V1 like those of II?")
    assert not found.why and found.unusable == {"V1": "is a flat line"} and quality.note(found) == "V1 is a flat line"
    assert not quality.check([series], "How many beats has lead II?").why


def test_a_flat_line_and_noise_have_a_level_and_a_length() -> None:
    flat = Series("f", np.full((300, 1), 3, np.float32), 50.0, ("a",), ("V",))
    for question in ("What is the mean of a?", "How long does it last?", "Is a higher in the first half?"):
        found = quality.check([flat], question)
        assert not found.why and found.unusable == {"a": "is a flat line"}
    for question in ("What is the heart rate?", "Is the rhythm regular?", "Welcher Befund?", "Which exercise is it?"):
        assert quality.check([flat], question).why == "a is a flat line"
    heart = replace(flat, channels=("heart rate",))
    assert not quality.check([heart], "What is the mean of heart rate?").why
    gone = replace(flat, values=np.full((300, 1), np.nan, np.float32))
    assert quality.check([gone], "What is the mean of a?").why == "a has no sample for 100% of the time"


def test_records_are_left_to_the_model() -> None:
    rows = Records("r", (Field("n", "integer"),), (np.zeros(3, np.int64),))
    assert quality.check([rows]) == quality.Quality("", {})


@pytest.mark.parametrize("about", wording.kinds())
def test_which_questions_need_a_shape(about: str) -> None:
    for task in (*cannot.TASKS, "state of the room"):
        for held_out in (False, True):
            for claim in (False, True):
                for text in wording.questions(about, held_out, claim):
                    asked = wording._filled(text, {**SLOTS, "task": task})
                    assert sensors.needs_shape(asked) == (about in SHAPED), asked


@pytest.mark.parametrize("about", wording.kinds())
def test_no_question_that_has_an_answer_is_one_that_no_sensor_answers(about: str) -> None:
    both = replace(ADC, values=ADC.values.repeat(2, axis=1), channels=("value", "other"), units=("V", "V"))
    for held_out in (False, True):
        for claim in (False, True):
            for text in wording.questions(about, held_out, claim):
                filled = wording._filled(text, {**SLOTS, "channel": "value", "other": "other", "task": "activity"})
                for opener in wording.table()["openers"]["held_out" if held_out else "questions"]:
                    assert sensors.lacking([both], opener + filled) == "", filled


@pytest.mark.parametrize("samples", [96, 256, 1000])
@pytest.mark.parametrize("rate_hz", [1 / 3600, 100.0])
def test_noise_is_found_at_any_rate_smooth_or_not(rate_hz: float, samples: int) -> None:
    random = np.random.default_rng(samples)
    for channels in (1, 3):
        wave = Series(
            "w", np.zeros((samples, channels), np.float32), rate_hz, tuple("abc"[:channels]), ("V",) * channels
        )
        made = [cannot.noise(wave, random) for _ in range(60)]
        refused = [quality.check([one], shape=True).why for one in made]
        assert np.mean([bool(why) for why in refused]) >= 0.95 and all(
            why == "" or "noise alone" in why for why in refused
        )


def test_what_is_no_noise() -> None:
    random = np.random.default_rng(0)
    at = np.arange(400)
    for values in (
        np.sin(at / 9),
        np.cumsum(random.normal(size=400)),
        (at % 40 < 2) + 0.05 * random.normal(size=400),
        np.repeat(random.normal(size=100), 4),
        0.5 * np.sin(at / 20) + random.normal(size=400) * 0.6,
    ):
        one = Series("s", np.asarray(values, np.float32)[:, None], 50.0, ("a",), ("V",))
        assert not quality.check([one], shape=True).why
    short = Series("s", random.normal(size=(60, 1)).astype(np.float32), 50.0, ("a",), ("V",))
    assert not quality.check([short], shape=True).why  # too few samples to tell


def test_channels_together_are_told_from_noise_better_than_one() -> None:
    random = np.random.default_rng(2)
    drawn = random.normal(size=(500, 12))
    slow = np.sin(np.arange(500)[:, None] / 80 + np.arange(12))
    names = tuple("abcdefghijkl")
    still = Series("s", (drawn + 0.26 * slow).astype(np.float32), 50.0, names, ("g",) * 12)
    alone = [quality._beyond_noise(still.values[:, n].astype(np.float64)) for n in range(12)]
    assert max(alone) < quality.ONE and not quality.check([still], shape=True).why
    assert quality.check([replace(still, values=drawn.astype(np.float32))], shape=True).why


@pytest.mark.parametrize(
    ("signal", "question", "lacks"),
    [
        (ROOM, "What's my heart rate?", "heart beat"),
        (ROOM, "Is there atrial fibrillation?", "heart beat"),
        (WATCH, "Is my blood pressure ok?", "blood pressure"),
        (POWER, "How many squats did I do?", "movement of a person"),
        (ECG, "Was the patient walking?", "movement of a person"),
        (ECG, "How hot is it?", "temperature"),
        (WATCH, "How many people are in the office?", "people in a room"),
        (ROOM, "Summarise the ECG.", "ECG"),
        (ROOM, "How windy was it?", "wind"),
        (FLOWS, "What is the humidity?", "humidity"),
        (PULSE, "Is this traffic malicious?", "network traffic"),
    ],
)
def test_a_question_for_another_sensor(signal: Series | Records, question: str, lacks: str) -> None:
    why = sensors.lacking([signal], question)
    assert why.startswith(f"the recording measures no {lacks}: it has {sensors.names(signal)[0]}")
    assert quality.check([signal], question).why == why
    assert not sensors.lacking([signal, replace(PULSE, name="ecg and all")], question) or lacks not in (
        "ECG",
        "heart beat",
    )


@pytest.mark.parametrize(
    ("signal", "question", "lacks"),
    [
        (ECG, "Is V5 regular?", "V5"),
        (ECG, "What is the mean of aVL?", "aVL"),
        (ECG, "How high does III get?", "III"),
        (replace(ECG, channels=("MLI", "II", "aVR", "V1", "V2")), "What is the mean of I?", "lead I"),
        (replace(WATCH, channels=("ax", "ay", "bz", "wx", "wy", "wz")), "What is the range of az?", "az"),
        (series("x,y", "px,px"), "When is z highest?", "z"),
        (series("temp 1,temp 2", "°C,°C"), "How low does temp 3 get?", "temp 3"),
        (series("left heat,right heat", "°C,°C"), "How low does upper heat get?", "upper heat"),
        (ROOM, "What is the mean of lead V9?", "lead V9"),
        (ROOM, "What does channel 7 do?", "channel 7"),
    ],
)
def test_a_channel_that_is_not_there(signal: Series, question: str, lacks: str) -> None:
    assert sensors.lacking([signal], question).startswith(f"the recording has no {lacks}: it has ")


@pytest.mark.parametrize(
    ("signal", "question"),
    [
        *[
            (ROOM, text)
            for text in ("When was it warmest?", "Is anybody in there?", "Is the air too dry?", "channel 2?")
        ],
        *[
            (ROOM, text)
            for text in ("Is the room occupied?", "Does temperature have a rhythm?", "What is the current CO2?")
        ],
        *[
            (ECG, text)
            for text in ("How fast does the heart beat?", "Should I worry?", "Does I lead II?", "Is it normal?")
        ],
        *[
            (WATCH, text)
            for text in ("How many squats?", "Was the person sitting?", "Does ax lead ay?", "Is it on a table?")
        ],
        *[(PULSE, text) for text in ("What is the pulse?", "Is the light steady?")],
        *[(ADC, text) for text in ("What is the heart rate?", "Is this ECG normal?")],  # nobody knows what it is
        *[(POWER, text) for text in ("Is somebody at home?", "Is the pump running?", "How long is it?")],
        *[(FLOWS, text) for text in ("Which network attack is this?", "How many packets were sent?")],
        *[(HOME, text) for text in ("Was it warm in the room?", "How humid is it?")],  # things of any kind
        (series("heart rate", "1/min"), "What is the mean of heart rate?"),
        (series("skin temperature", "°C"), "What is the mean of skin temperature?"),
        (replace(ADC, name="ecg of monday"), "What is the heart rate?"),
        (replace(ROOM, labels={"modality": "blood-pressure"}), "What is the blood pressure?"),
    ],
)
def test_what_may_be_asked(signal: Series | Records, question: str) -> None:
    assert sensors.lacking([signal], question) == ""


@pytest.mark.parametrize(
    "question", ["Who owns the pump?", "What did it cost?", "Why did they measure?", "What colour is the wall?"]
)
def test_what_no_sensor_says(question: str) -> None:
    for signal in (ROOM, ADC, FLOWS, HOME):
        assert quality.check([signal], question).why == "no recording of sensors says that"
    named = replace(ADC, channels=("colour",))
    assert not sensors.lacking([named], "What is the mean of colour?")
    for asked in ("Who leads: value, or neither?", "How would you describe value to someone who cannot see it?"):
        assert not sensors.lacking([ADC], asked)
    assert not sensors.lacking([WATCH], "Why?")


def test_frames_are_left_to_who_reads_them() -> None:
    frames = modality.load("image").sample()[0]
    assert isinstance(frames, Frames) and sensors.names(frames) == []
    assert sensors.lacking([frames], "What is the heart rate?") == ""


def test_every_modality_measures_something_or_may_be_anything() -> None:
    """A pattern that does not know the channels of a modality of its own refuses what it tells."""
    for name, what in {
        "ecg": "heart beat", "pulse": "heart beat", "heart-rate": "heart beat", "blood-pressure": "blood pressure",
        "spo2": "oxygen", "motion": "movement of a person", "steps": "movement of a person", "control": "vehicle",
        "gps": "place", "flows": "network traffic", "link-quality": "network traffic", "gaze": "gaze",
        "home-temperature": "temperature", "humidity": "humidity", "occupancy": "people in a room",
        "force-torque": "torque", "voice": "sound", "audio": "sound",
    }.items():  # fmt: skip
        known = modality.load(name)
        fields = Series(name, np.zeros((4, len(known.channels)), np.float32), 1.0, known.channels, known.units)
        assert sensors.measures(replace(fields, name="r"), what), name


@pytest.mark.parametrize(
    ("trained", "likely", "foreign"),
    [
        (("I", "II", "V1", "AVR"), (ECG, series("MLII,V5", "mV,mV"), ADC), (ROOM, WATCH, POWER, FLOWS, PULSE)),
        (("temperature", "humidity", "CO2"), (ROOM, series("temp_hall", "°C")), (ECG, WATCH, FLOWS)),
        (
            ("ax", "ay", "az", "wx", "wy", "wz"),
            (WATCH, series("x,y,z", "g,g,g"), series("acceleration x", "g")),
            (ECG, ROOM),
        ),
        (("protocol", "service"), (FLOWS,), (ROOM, HOME)),
    ],
)
def test_a_signal_that_a_model_knows_nothing_of(
    trained: tuple[str, ...], likely: tuple[Series, ...], foreign: tuple[Series, ...]
) -> None:
    assert not any(sensors.foreign(one, trained) for one in likely)
    assert all(sensors.foreign(one, trained) for one in foreign)


def test_labels_of_a_signal_that_the_model_knows_nothing_of() -> None:
    found = quality.check([ROOM], "What is the diagnosis?", trained=ECG.channels)
    here = "the recording has temperature, humidity, CO2"
    assert found.why == f"the model was trained on other channels (I, II, aVR, V1 and 1 more): {here}"
    assert not quality.check([ROOM], "What is the mean of humidity?", trained=ECG.channels).why
    assert not quality.check([ROOM], "What is the diagnosis?", trained=()).why
    assert not quality.check([ROOM, ECG], "Describe this recording.", trained=ECG.channels).why
