"""A model that reads films for the Space: reports as they are written, answers, boxes, scanpaths, comparisons.

Needs only transformers and what the model's own folder brings; every value that leaves is plain data.
"""

import hashlib
import io
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForImageTextToText, AutoProcessor, StoppingCriteria, TextIteratorStreamer

STRATEGIES = ("direct", "grounded", "structured")
TASK_OF_STRATEGY = {"direct": "report", "grounded": "grounded", "structured": "structured"}
# Seconds between two looks at unfinished words; whole sentences are shown at once.
LIVE_EVERY_S = 0.1
# Below this many weights, threads cost more than they bring.
SMALL_MODEL = 50_000_000
# Notes about a visitor's film or gaze are for the visitor, not for a log.
transformers.logging.set_verbosity_error()
SENTENCE_END = re.compile(r"[.!?]\s*$")
# A box in the text, `[412 655 498 901]`, or the beginning of one.
BOX_MARK = re.compile(r"\s*\[[\s\d,]*(?:\]|$)")
CHANGED_BY = 0.02
# Drafts of a text, the first included, where the first one contradicts what was seen; tokens less than this probable
# next to the likeliest one are left out of them.
NUM_DRAFTS, DRAFT_MIN_P = 24, 0.1
NUM_ANSWER_DRAFTS, ANSWER_MIN_P = 32, 0.01
# Drafts that are drawn before the best one is looked at again: more are drawn only while all contradict something.
DRAFTS_AT_ONCE = 8
REDRAFTING = "This contradicts what was seen. Writing other drafts ..."


class TokenStreamer(TextIteratorStreamer):
    """Text as it is written, and the token ids behind it."""

    def __init__(self, tokenizer):
        super().__init__(tokenizer, skip_prompt=True, timeout=300, skip_special_tokens=True)
        self.token_ids: list[int] = []

    def put(self, value):
        if not self.next_tokens_are_prompt:
            self.token_ids.extend(value.reshape(-1).tolist())
        super().put(value)


class StopWhen(StoppingCriteria):
    """Ends a generation that nobody waits for any more."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class FilmReader:
    """A model with its processor.

    Args:
        name: local folder or Hub id.
        revision: commit on the Hub; its code is what runs.
    """

    def __init__(self, name: str, revision: str | None = None):
        options = {"revision": revision, "trust_remote_code": True}
        self.processor = AutoProcessor.from_pretrained(name, **options)
        self.model = AutoModelForImageTextToText.from_pretrained(name, **options).eval()
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        if self.model.device.type == "cpu" and self.model.num_parameters() < SMALL_MODEL:
            torch.set_num_threads(1)
        # A folder's place on the server is nobody's business.
        shown = Path(name).name if Path(name).is_dir() else name
        self.description = {"name_or_path": shown, "revision": revision, "package_version": None}

    # -- reports ------------------------------------------------------------------------------------------------------

    def read(self, film, gaze=None, gaze_source: str = "auto", strategy: str = "direct") -> Iterator[dict]:
        """A report as it is written.

        Args:
            film: as the model's `load_film` gives it.
            gaze: (N, 3) x, y in [0, 1] of the film and duration in seconds, or `None`.
            gaze_source: `"auto"`, `"recorded"`, `"predicted"` or `"none"`.
            strategy: one of `STRATEGIES`.

        Yields:
            `record`, the evidence record of what is written so far; `live`, the words of the unfinished sentence, or
            `REDRAFTING`; `done`. First as soon as the film is seen, then at every sentence, once more without any
            where other drafts are being written, at last with the confidences.
        """
        started = time.monotonic()
        features = self.see(film, gaze, gaze_source)
        task = TASK_OF_STRATEGY[strategy]
        findings = None
        if strategy == "structured":
            (findings,) = self.processor.post_process_findings(features, [(film.height, film.width)])
        prompt = self.processor.task_prompt(task, findings=findings)

        def record_of(token_ids, log_probs=None) -> dict:
            (record,) = self.processor.post_process_evidence(
                [token_ids],
                features,
                [film],
                token_log_probs=None if log_probs is None else [log_probs],
                model=self.description,
                task="report",
                strategy=strategy,
                prompt=prompt,
                **self.drafts_allowed(),
            )
            if log_probs is None:  # an unfinished report leaves things out that the next sentence may say
                record["warnings"] = list(film.warnings)
            return record

        record = record_of([])
        yield {"record": record, "live": "", "done": False, "seconds": time.monotonic() - started}
        live_since, last_look = "", started
        result: dict = {}
        for token_ids, text in self.write(film, features, prompt, result):
            live_since += text
            if SENTENCE_END.search(live_since):
                record, live_since = record_of(token_ids), ""
                yield {"record": record, "live": "", "done": False, "seconds": time.monotonic() - started}
            elif time.monotonic() - last_look > LIVE_EVERY_S:
                last_look = time.monotonic()
                live = BOX_MARK.sub("", live_since).strip()
                yield {"record": record, "live": live, "done": False, "seconds": last_look - started}
        cost = self.contradiction(features, result)
        if cost > 0:
            # gradio sends differences between outputs, and loses count where lists in lists get shorter.
            empty = record | {"sentences": []}
            yield {"record": empty, "live": REDRAFTING, "done": False, "seconds": time.monotonic() - started}
            self.redraft(film, features, prompt, result, cost, name_findings=strategy != "grounded")
        record = record_of(result["sequence"], result["log_probs"])
        yield {"record": record, "live": "", "done": True, "seconds": time.monotonic() - started}

    @torch.inference_mode()
    def see(self, film, gaze=None, gaze_source: str = "auto"):
        """What the model makes of a film before it writes: gaze, findings, tokens."""
        inputs = self.processor(images=[film], gaze=[gaze], gaze_source=gaze_source, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        for name in ("input_ids", "attention_mask"):
            inputs.pop(name)
        return self.model.get_image_features(**inputs, return_dict=True)

    def write(self, film, features, prompt: str, result: dict, **options) -> Iterator[tuple[list[int], str]]:
        """Token ids so far and the text that came last, while the model writes; at the end `result` is filled."""
        inputs = self.processor(images=[film], text=prompt, return_tensors="pt").to(self.model.device)
        streamer, stop = TokenStreamer(self.processor.tokenizer), StopWhen()
        failure: list[BaseException] = []

        def generate():
            try:
                generated = self.model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    mm_encoder_outputs={"image": features},
                    streamer=streamer,
                    stopping_criteria=[stop],
                    return_dict_in_generate=True,
                    output_scores=True,
                    num_beams=1,
                    **options,
                )
                scores = self.model.compute_transition_scores(
                    generated.sequences, generated.scores, normalize_logits=True
                )
                result["sequence"], result["log_probs"] = generated.sequences[0].cpu(), scores[0].cpu()
            except BaseException as error:
                failure.append(error)
            finally:
                streamer.text_queue.put(streamer.stop_signal)

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            for text in streamer:
                yield list(streamer.token_ids), text
        finally:
            stop.event.set()
            thread.join()
        if failure:
            raise failure[0]

    def drafts_allowed(self, question: str | None = None) -> dict:
        """What the evidence is told of drafts; nothing where the model's folder is older than they are."""
        number = NUM_DRAFTS if question is None else NUM_ANSWER_DRAFTS
        return {"num_drafts": number} if hasattr(self.processor, "contradictions") else {}

    def costs(self, texts: list[str], features, question: str | None) -> list[float]:
        """How far each text contradicts what was seen."""
        (costs,) = self.processor.contradictions([texts], features, None if question is None else [question])
        return costs.tolist()

    def contradiction(self, features, result: dict, question: str | None = None) -> float:
        """How far the text in `result` contradicts what was seen; 0 where the model cannot tell."""
        if not self.drafts_allowed():
            return 0.0
        return self.costs(self.processor.batch_decode_report([result["sequence"]]), features, question)[0]

    @torch.inference_mode()
    def redraft(
        self,
        film,
        features,
        prompt: str,
        result: dict,
        lowest: float,
        question: str | None = None,
        name_findings: bool = False,
    ) -> None:
        """Put the draft that contradicts least of what was seen into `result`; the same at every visit.

        Args:
            lowest: how far the text in `result` contradicts it.
            name_findings: a report of which the first few drafts all contradict something is then written from the
                findings that were seen, as a structured one is, each of them named as certain.
        """
        inputs = self.processor(images=[film], text=prompt, return_tensors="pt").to(self.model.device)
        most = self.drafts_allowed(question)["num_drafts"]
        asked = inputs
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for drawn in range(1, most, DRAFTS_AT_ONCE):
                if lowest == 0:
                    break
                if name_findings and drawn > DRAFTS_AT_ONCE and asked is inputs:
                    (findings,) = self.processor.post_process_findings(features, [(film.height, film.width)])
                    findings = [replace(finding, confidence="definite") for finding in findings]
                    named = self.processor.task_prompt(TASK_OF_STRATEGY["structured"], findings=findings)
                    asked = self.processor(images=[film], text=named, return_tensors="pt").to(self.model.device)
                generated = self.model.generate(
                    input_ids=asked["input_ids"],
                    attention_mask=asked["attention_mask"],
                    mm_encoder_outputs={"image": features},
                    do_sample=True,
                    min_p=DRAFT_MIN_P if question is None else ANSWER_MIN_P,
                    num_return_sequences=min(DRAFTS_AT_ONCE, most - drawn),
                    num_beams=1,
                )
                # Whatever they were asked, they answer what the first text answers.
                written = generated[:, asked["input_ids"].shape[1] :]
                drafts = torch.cat((inputs["input_ids"].expand(len(written), -1), written), dim=1)
                costs = self.costs(self.processor.batch_decode_report(drafts), features, question)
                best = costs.index(min(costs))
                if costs[best] < lowest:  # of equals the first
                    lowest, result["sequence"] = costs[best], drafts[best].cpu()
                    result["log_probs"] = self.log_probs(drafts[best : best + 1], written.shape[1], features)

    def log_probs(self, sequence: torch.Tensor, num_new: int, features) -> torch.Tensor:
        """How probable a text is behind its own prompt: log probabilities (num_new,) of the tokens at its end."""
        logits = self.model(
            input_ids=sequence, mm_encoder_outputs={"image": features}, logits_to_keep=num_new + 1
        ).logits
        log_probs = logits[:, :-1].float().log_softmax(-1)
        return log_probs.gather(-1, sequence[:, -num_new:, None])[0, :, 0].cpu()

    def say(self, film, task: str, **words) -> tuple[str, dict, object]:
        """The model's text for a task, the evidence record around it, and what the film gave."""
        prompt = self.processor.task_prompt(task, **words)
        features = self.see(film)
        result: dict = {}
        for _ in self.write(film, features, prompt, result):
            pass
        question = words.get("question")
        cost = 0.0 if question is None else self.contradiction(features, result, question)
        if cost > 0:
            self.redraft(film, features, prompt, result, cost, question)
        (record,) = self.processor.post_process_evidence(
            [result["sequence"]],
            features,
            [film],
            token_log_probs=[result["log_probs"]],
            model=self.description,
            task=task,
            strategy="direct",
            prompt=prompt,
            **({} if question is None else self.drafts_allowed(question)),
        )
        return self.processor.batch_decode_report([result["sequence"]])[0], record, features

    # -- questions, phrases, gaze -------------------------------------------------------------------------------------

    def ask(self, film, question: str) -> dict:
        """The evidence record whose `report` is the answer to a question."""
        return self.say(film, "ask", question=question)[1]

    def ground(self, film, phrase: str) -> dict:
        """Where on the film a phrase is: `phrase`, `text` and `boxes` in [0, 1], `findings` that it names with their
        probabilities, `warnings`, and the film's name and hash."""
        text, record, features = self.say(film, "ground", phrase=phrase)
        (found,) = self.processor.post_process_phrases([text], [phrase], [film], features)
        return {"image": record["image"], "text": found.pop("answer"), **found}

    @torch.inference_mode()
    def scanpaths(self, film, num_samples: int, temperature: float = 1.0) -> list[dict]:
        """Drawn readings of a film, the likeliest first, with the log probability of each in nats."""
        inputs = self.processor(images=[film], return_tensors="pt").to(self.model.device)
        drawn = self.model.predict_scanpath(
            inputs["pixel_values"],
            num_samples=num_samples,
            do_sample=True,
            temperature=temperature,
            film_boxes=inputs["film_boxes"],
        )
        sizes = [(film.height, film.width)] * num_samples
        readings = self.processor.post_process_scanpath(drawn.fixations[0], drawn.mask[0], sizes)
        values = [
            {
                "log_probability": round(float(log_probability), 3),
                "fixations": [
                    {"order": order, **{key: round(float(value), 4) for key, value in zip(KEYS, row, strict=True)}}
                    for order, row in enumerate(reading)
                ],
            }
            for reading, log_probability in zip(readings, drawn.log_probability[0], strict=True)
        ]
        return sorted(values, key=lambda value: -value["log_probability"])

    def compare(self, film, gaze, strategy: str = "direct") -> dict:
        """The film read with predicted gaze and with the visitor's, and what differs: see [`changes`]."""
        predicted, recorded = (
            self.last(self.read(film, gaze=own, gaze_source=source, strategy=strategy))
            for own, source in ((None, "predicted"), (gaze, "recorded"))
        )
        return {"predicted": predicted, "recorded": recorded, "changes": changes(predicted, recorded)}

    def document(self, kind: str, record: dict, film) -> bytes:
        """A record as the bytes of a file: `report`, `evidence`, `overlay`, `page` or `dicom-sr`."""
        if kind == "report":
            return (record["report"] + "\n").encode()
        if kind == "evidence":
            return (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode(errors="backslashreplace")
        if kind == "overlay":
            memory = io.BytesIO()
            self.processor.draw_evidence(record, film).save(memory, format="PNG", compress_level=1)
            return memory.getvalue()
        if kind == "page":
            return self.processor.draw_html(record, film).encode()
        return self.structured_report(record, film)

    def structured_report(self, record: dict, film) -> bytes:
        """A record as a DICOM structured report. Nothing of the film's header is in it, for nothing of it was kept: it
        refers to the film by identifiers made of its hash.
        """
        import pydicom

        source = pydicom.Dataset()
        source.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            digest = hashlib.sha256(f"{keyword} {film.sha256}".encode()).digest()
            setattr(source, keyword, f"2.25.{int.from_bytes(digest[:16], 'big')}")
        source.Modality = "OT"
        memory = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film.dcm"
            source.save_as(path, implicit_vr=False, little_endian=True)
            unnamed = record | {"image": record["image"] | {"sha256": None}}
            self.processor.dicom_report(unnamed, path).save_as(memory)
        return memory.getvalue()

    @staticmethod
    def last(steps: Iterator[dict]) -> dict:
        for step in steps:
            record = step["record"]
        return record


KEYS = ("x", "y", "duration_s")


def changes(before: dict, after: dict) -> dict:
    """What differs between two evidence records of one film.

    Returns:
        `findings`: those whose probability moved by `CHANGED_BY` or more, the largest change first; `only_before` and
        `only_after`: sentences that stand in one report only, in their order; `links`: for each sentence that stands
        in both, how many fixations fall into its boxes before and after.
    """
    was = {finding["name"]: finding["probability"] for finding in before["findings"]}
    findings = [
        {"name": one["name"], "before": was[one["name"]], "after": one["probability"]}
        for one in after["findings"]
        if abs(one["probability"] - was[one["name"]]) >= CHANGED_BY
    ]
    first, second = ([one["text"] for one in record["sentences"]] for record in (before, after))
    looked = {one["text"]: len(one["fixations"]) for one in before["sentences"]}
    return {
        "findings": sorted(findings, key=lambda one: -abs(one["after"] - one["before"])),
        "only_before": [text for text in first if text not in second],
        "only_after": [text for text in second if text not in first],
        "links": [
            {"text": one["text"], "before": looked[one["text"]], "after": len(one["fixations"])}
            for one in after["sentences"]
            if one["text"] in looked
        ],
    }
