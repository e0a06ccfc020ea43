import ast
import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling_gaze2report.processing.datasets import gaze_formats, scanpath
from modeling_gaze2report.processing.datasets.gaze_formats import GazeOptions, read_gaze, recognise
from modeling_gaze2report.processing.datasets.scanpath import parse_canonical, write_canonical
from modeling_gaze2report.processing.errors import InputError

SIZE = GazeOptions(width=1000, height=500)


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def first(scanpath):
    return [float(v[0]) for v in (scanpath.x, scanpath.y, scanpath.onset_s, scanpath.duration_s)]


# --- fabricated files, faithful in every column that is read ----------------------------------------------------------

EGD_HEADER = (
    "SESSION_ID,MEDIA_ID,DICOM_ID,CNT,Time (in "
    "secs),TIMETICK(f=10000000),FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV,BPOGX,BPOGY,BPOGV,"
    "X_ORIGINAL,Y_ORIGINAL\n"
)


def egd_row(film, time, x, y, start, duration, number, valid, x_original, y_original):
    return f"s,0,{film},1,{time},0,{x},{y},{start},{duration},{number},{valid},0,0,1,{x_original},{y_original}\n"


def test_egd_takes_the_last_valid_row_of_a_fixation(tmp_path):
    text = EGD_HEADER
    text += egd_row("film-a", 10.0, 0.5, 0.5, 10.0, 0.10, 1, 1, 100, 200)
    text += egd_row("film-a", 10.3, 0.5, 0.5, 10.0, 0.35, 1, 1, 110, 210)
    text += egd_row("film-a", 10.4, 0.5, 0.5, 10.0, 0.60, 1, 0, 900, 400)
    text += egd_row("film-a", 10.9, 0.5, 0.5, 10.7, 0.20, 2, 1, -3.5, -3.5)
    text += egd_row("film-b", 50.0, 0.5, 0.5, 50.5, 0.25, 9, 1, 300, 100)

    first_film, second_film = read_gaze(write(tmp_path, "fixations.csv", text), options=SIZE)

    assert first(first_film) == [110, 210, 0.0, 0.35]
    assert len(first_film) == 1  # the one at -3.5, -3.5 is off the image
    assert any("off the image" in note for note in first_film.notes)
    assert second_film.image_id == "film-b"
    assert first(second_film) == [300, 100, 0.5, 0.25]


def test_egd_without_original_pixels_goes_through_the_screen(tmp_path):
    text = "FPOGX,FPOGY,FPOGS,FPOGD,FPOGID,FPOGV\n0.5,0.25,1.0,0.4,1,1\n"
    options = GazeOptions(width=1000, height=500, placement=(480, 0, 1440, 1080))

    (scanpath,) = read_gaze(write(tmp_path, "gazepoint.csv", text), options=options)

    # x: 0.5 * 1920 = 960 px of the screen, (960 - 480) * 1000 / 960 = 500; y: 270 * 500 / 1080 = 125
    assert first(scanpath) == [500, 125, 0.0, 0.4]


REFLACX_HEADER = (
    "timestamp_start_fixation,timestamp_end_fixation,x_position,y_position,pupil_area_normalized,"
    "angular_resolution_x_pixels_per_degree,angular_resolution_y_pixels_per_degree,window_width,window_level,"
    "xmin_shown_from_image,ymin_shown_from_image,xmax_shown_from_image,ymax_shown_from_image,"
    "xmin_in_screen_coordinates,ymin_in_screen_coordinates,xmax_in_screen_coordinates,ymax_in_screen_coordinates\n"
)


def reflacx_row(start, end, x, y, shown="0,0,1000,500"):
    return f"{start},{end},{x},{y},1.0,40,40,1.0,0.5,{shown},800,0,2800,2160\n"


def test_reflacx_keeps_negative_times_and_degrees(tmp_path):
    text = REFLACX_HEADER + reflacx_row(-0.5, -0.2, 500, 250) + reflacx_row(0.1, 0.5, 600, 300)

    (scanpath,) = read_gaze(write(tmp_path, "fixations.csv", text), options=SIZE)

    assert first(scanpath) == [500, 250, -0.5, pytest.approx(0.3)]
    assert scanpath.pixels_per_degree.tolist() == [40, 40]
    assert scanpath.image_id == tmp_path.name


def test_reflacx_follows_the_zoom_window(tmp_path):
    text = REFLACX_HEADER
    text += reflacx_row(0, 0.2, 395, 250, "400,0,800,500")  # 5 px = 0.125 degrees outside: moved to the edge
    text += reflacx_row(1, 1.2, 300, 250, "400,0,800,500")  # 100 px = 2.5 degrees outside: left out
    text += reflacx_row(2, 2.2, 300, 250)  # inside again after zooming out

    (scanpath,) = read_gaze(write(tmp_path, "fixations.csv", text), options=SIZE)

    assert scanpath.x.tolist() == [400, 300]
    assert scanpath.onset_s.tolist() == [0, 2]
    assert len(scanpath.notes) == 2


@pytest.mark.parametrize(("times", "unit"), [([0.2, 0.3, 0.4], "seconds"), ([200, 300, 400], "milliseconds")])
def test_gazesearch_decides_and_says_the_unit_of_time(tmp_path, times, unit):
    entry = {
        "name": "a.png",
        "subject": 1,
        "task": "edema",
        "condition": "present",
        "X": [112, 56, 0],
        "Y": [112, 28, 10],
        "T": times,
    }
    path = write(tmp_path, "train.json", json.dumps([entry]))

    (scanpath,) = read_gaze(path, options=GazeOptions(width=448, height=224))

    assert first(scanpath) == [224, 112, 0, pytest.approx(0.2)]
    assert scanpath.onset_s.tolist() == pytest.approx([0, 0.2, 0.5])
    assert any(unit in note for note in scanpath.notes)
    assert scanpath.extra["task"] == "edema"


def test_gazesearch_refuses_mixed_units(tmp_path):
    entry = {"name": "a.png", "subject": 1, "X": [1, 2, 3], "Y": [1, 2, 3], "T": [0.2, 0.3, 250]}

    with pytest.raises(InputError, match="seconds and milliseconds are mixed"):
        read_gaze(write(tmp_path, "mixed.json", json.dumps([entry])))


EYELINK = """** CONVERTED FROM x.edf
MSG	100 DISPLAY_COORDS 0 0 999 499
MSG	900 TRIALID 7
START	1000 	LEFT RIGHT	SAMPLES	EVENTS
SAMPLES	GAZE	LEFT	RIGHT	RATE	 500.00	TRACKING	CR
MSG	1100 SYNCTIME
EFIX L   1150	1248	100	  200.5	  100.0	    500
EFIX R   1150	1248	100	  210.5	  101.0	    500
EFIX R   1300	1498	200	  400.0	  300.0	    500
END	2000 	SAMPLES	EVENTS
"""


def test_eyelink_binocular_takes_the_eye_with_more_fixations(tmp_path):
    (scanpath,) = read_gaze(write(tmp_path, "trial.asc", EYELINK))

    # 1150 - 1100 = 50 ms after SYNCTIME; 1248 - 1150 + one sample of 2 ms = 100 ms
    assert first(scanpath) == [210.5, 101.0, 0.05, 0.1]
    assert scanpath.duration_s.tolist() == [0.1, 0.2]
    assert scanpath.extra == {"trial": "7", "eye": "R", "format": "eyelink"}


def test_eyelink_samples_where_there_are_no_events(tmp_path):
    samples = "".join(f"{1000 + 2 * k}\t  100.0\t  200.0\t  500.0\n" for k in range(100))
    text = (
        "MSG\t1 DISPLAY_COORDS 0 0 999 499\nSTART\t1000 \tLEFT\tSAMPLES\nSAMPLES\tGAZE\tLEFT\tRATE\t 500.00\n"
        + samples
        + "END\t1200\n"
    )

    (scanpath,) = read_gaze(write(tmp_path, "samples.asc", text))

    assert first(scanpath) == [100, 200, 0.0, pytest.approx(0.2)]
    assert any("I-DT" in note for note in scanpath.notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("EFIX L   1150	1248", "row 7: EFIX must have"),
        ("EFIX L   1150	1248	100	abc	1	1", "row 7: 'abc' where a number"),
    ],
)
def test_eyelink_broken_events_are_named(tmp_path, line, message):
    text = EYELINK.replace("EFIX L   1150	1248	100	  200.5	  100.0	    500", line)

    with pytest.raises(InputError, match=message):
        read_gaze(write(tmp_path, "broken.asc", text))


TOBII_PRO = (
    "Recording timestamp\tEye movement type\tGaze event duration\tEye movement type index\tFixation point X\tFixation "
    "point Y\t"
    "Presented Stimulus name\tRecording resolution width\tRecording resolution height\n"
    "0\tSaccade\t40\t1\t\t\tfilm.png\t1000\t500\n"
    "20000\tFixation\t233\t1\t412,5\t120\tfilm.png\t1000\t500\n"
    "40000\tFixation\t233\t1\t412,5\t120\tfilm.png\t1000\t500\n"
    "300000\tFixation\t150\t2\t500\t130,25\tfilm.png\t1000\t500\n"
)


def test_tobii_pro_with_decimal_comma_and_microseconds(tmp_path):
    (scanpath,) = read_gaze(write(tmp_path, "pro.tsv", TOBII_PRO))

    assert scanpath.image_id == "film.png"
    assert first(scanpath) == [412.5, 120, 0.0, 0.233]
    assert scanpath.y.tolist() == [120, 130.25]
    assert scanpath.onset_s.tolist() == pytest.approx([0.0, 0.28])


def test_pupil_turns_y_over_and_counts_repeated_rows_once(tmp_path):
    text = (
        "id,start_timestamp,duration,confidence,norm_pos_x,norm_pos_y\n"
        "1,100.0,250,0.9,0.25,0.8\n1,100.0,250,0.9,0.25,0.8\n2,100.5,125,0.3,0.5,0.5\n3,101.0,200,0.9,0.5,0.5\n"
    )

    (scanpath,) = read_gaze(write(tmp_path, "fixations.csv", text), options=SIZE)

    assert first(scanpath) == [250, pytest.approx(100), 0.0, 0.25]
    assert scanpath.onset_s.tolist() == [0.0, 1.0]


def test_csv_with_declared_columns(tmp_path):
    text = "who;where_x;where_y;from;lasting\nann;100;50;0;200\nann;200;60;250;300\nbob;300;70;0;150\n"
    columns = {"x": "where_x", "y": "where_y", "onset": "from", "duration": "lasting", "reader": "who"}

    ann, bob = read_gaze(write(tmp_path, "own.csv", text), options=GazeOptions(width=1000, height=500, columns=columns))

    assert (ann.reader_id, bob.reader_id) == ("ann", "bob")
    assert first(ann) == [100, 50, 0, 0.2]
    assert first(bob) == [300, 70, 0, 0.15]


def test_csv_without_header_takes_column_numbers(tmp_path):
    columns = {"x": "0", "y": "1", "duration": "2"}

    (scanpath,) = read_gaze(
        write(tmp_path, "bare.csv", "0.5,0.25,0.3\n0.75,0.5,0.2\n"),
        options=GazeOptions(width=1000, height=500, columns=columns),
    )

    assert first(scanpath) == [500, 125, 0, 0.3]


def test_csv_from_the_screen(tmp_path):
    options = GazeOptions(width=1000, height=500, units="screen", placement=(100, 50, 600, 300))

    (scanpath,) = read_gaze(write(tmp_path, "screen.csv", "x,y,duration_s,onset_s\n350,175,0.2,0\n"), options=options)

    assert first(scanpath) == [500, 250, 0, 0.2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marks_of_encodings(tmp_path, encoding):
    path = tmp_path / "marked.csv"
    path.write_bytes("x,y,duration\n10,20,0.5\n".encode(encoding))

    assert first(read_gaze(path, options=SIZE)[0]) == [10, 20, 0, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n", "no columns of gaze are recognised among a, b, c"),
        ("x,y,duration\n10,20,0.5\n10,oops,0.5\n", "row 3, column y: 'oops' is no number"),
        ("x,y,duration\n10,20,0.5\n10,,0.5\n", "row 3, column y: 'nothing' where a number"),
        ("x,y,duration\n10,20,0.5\nnan,20,0.5\n", "row 3, column x"),
        ("x,y,duration\n10,20,0.5\n10,20\n", "row 3: 2 cells, but the header has 3 columns"),
        ("x,y,duration\n10,20,-0.5\n", "row 2, duration: -0.5 s"),
        ("x,y,duration,onset\n10,20,0.5,3\n10,20,0.5,2\n", "row 3, onset: 2 s comes after 3 s"),
        ("x,y,duration,onset\n10,20,0.5,3\n10,20,0.5,3\n", "row 3, onset: 3 s is there twice"),
        ("x,y,duration\n10,20,0.2\n11,20,0.3\n12,20,300\n", "row 4, duration: 300 beside a median"),
        ("x,y,duration\n0.5,0.25,0.2\n0.6,0.5,0.3\n700,300,0.3\n", "row 4, columns x and y: 700, 300"),
        ("x,y,duration\n5000,20,0.5\n6000,30,0.5\n", "all 2 fixations of .* lie off the image"),
        ("x,y,time\n10,20,0.0\n10,20,0.0\n11,20,0.0\n", "row 4, time: 0.000000 s is there twice"),
        ("x,y,time_s\n10,20,0.2\n10,21,0.1\n", "row 3, time: 0.100000 s goes back"),
        ("x,y,duration\n", "a header but no row"),
        ("   \n", "the file is empty"),
    ],
)
def test_bad_input_names_file_row_and_column(tmp_path, text, message):
    path = write(tmp_path, "bad.csv", text)

    with pytest.raises(InputError, match=message) as error:
        read_gaze(path, "csv", SIZE)
    assert "bad.csv" in str(error.value)


def test_wrong_encoding_is_named_with_its_row(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("reader,x,y,duration\nann,10,20,0.5\nJos\xe9,10,20,0.5\n".encode("latin-1"))

    with pytest.raises(InputError, match="row 3: byte 0xe9 is not UTF-8"):
        read_gaze(path, options=SIZE)
    assert read_gaze(path, options=GazeOptions(width=1000, height=500, encoding="cp1252"))[1].reader_id == "José"


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_unreadable_file_is_named(tmp_path, name):
    with pytest.raises(InputError, match="cannot be read"):
        read_gaze(tmp_path / name)


def test_size_of_the_image_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="--width and --height"):
        read_gaze(write(tmp_path, "gaze.csv", "x,y,duration\n10,20,0.5\n"))


def test_canonical_lines_are_recognised_whatever_is_asked_for(tmp_path):
    line = '{"image_id": "film", "reader_id": null, "width": 100, "height": 50, "X": [10], "Y": [20], "T": [250]}\n'

    (scanpath,) = read_gaze(write(tmp_path, "gaze.jsonl", line), "csv")

    assert first(scanpath) == [10, 20, 0, 0.25]


# --- real exports -----------------------------------------------------------------------------------------------------

SCREEN = GazeOptions(width=1280, height=1024)
# file -> (recognised format, image or reader of the first scanpath, x, y, onset s, duration s): values read off the
# file by hand
REAL = {
    # row "12 26 633 513 518": FixationIndex, Timestamp ms, FixationDuration ms, x, y
    "emdat/P61-Fixation-Data.tsv": ("tobii", "P61-Fixation-Data", 513, 518, 0.026, 0.633),
    # row "fixation,49.356...,43.351...,1564666170500000.0,1564666170740000.0,240.0"; its start is the first
    "emdat/4Ctest_fixation.csv": ("csv", "4Ctest_fixation", 49.35627119696659, 43.35193504457889, 0.0, 0.240),
    # rows 201 ms on: FixationIndex 0, MappedFixationPoint 416, 532, FixationDuration 2593, stimulus from 201 ms on
    "tobii_studio/Rec_01.tsv": ("tobii", "Augenblicke.jpg", 416, 532, 0.0, 2.593),
    "tobii_studio/tobii-CSVExport-All-Data-noheader-nofilter.tsv": ("tobii", "No media", 650, 328, 0.0, 0.795),
    # id 998: norm_pos 0.24247..., 0.50889... of 1280 x 1024 with y turned over; 208.1115 ms
    "eyefeatures_pupil/fixations_subset.csv.gz": (
        "pupil",
        "1",
        0.2424776386958218 * 1280,
        (1 - 0.5088954597978453) * 1024,
        0.0,
        0.2081115,
    ),
    # EFIX L 2154563 2154695 133 141.0 132.2 after START 2154556, at 1 kHz and at 2 kHz (132.5 ms)
    "pymovements_testfiles/eyelink_monocular_example.asc": (
        "eyelink",
        "eyelink_monocular_example",
        141.0,
        132.2,
        0.007,
        0.133,
    ),
    "pymovements_testfiles/eyelink_monocular_2khz_example.asc": (
        "eyelink",
        "eyelink_monocular_2khz_example",
        141.0,
        132.2,
        0.007,
        0.1325,
    ),
    # EFIX L 647815 647899 86 868.5 698.4 after SYNCTIME 643205, at 500 Hz
    "pymovements_testfiles/eyelink_monocular_no_dummy_example.asc": (
        "eyelink",
        "eyelink_monocular_no_dummy_example",
        868.5,
        698.4,
        4.610,
        0.086,
    ),
    # row "msd001,1,59.8,125.4,1430.0,22": CURRENT_FIX_X, _Y, _PUPIL, _DURATION ms
    "pymovements_testfiles/18sat_fixfinal.csv": ("csv", "1", 59.8, 125.4, 0.0, 0.022),
}
TOO_SHORT = "no fixation in 10 samples"
# what cannot be used, and why that is true
REFUSED = {
    "emdat/P61-Event-Data.tsv": "event log .* without gaze columns",
    "emdat/P63-All-Data.tsv": "no row belongs to a fixation",
    "pymovements_testfiles/binocular_example.csv": TOO_SHORT,
    "pymovements_testfiles/copco_rm_dummy.csv": "no columns of gaze are recognised",
    "pymovements_testfiles/didec_example.txt": "row 43: 4 cells",
    "pymovements_testfiles/emtec_example.csv": "is there twice",
    "pymovements_testfiles/gaze_on_faces_example.csv": "numbers and no names",
    "pymovements_testfiles/gazebase_example.csv": "neither a duration nor a time",
    "pymovements_testfiles/gazebase_vr_example.csv": "neither a duration nor a time",
    "pymovements_testfiles/gazegraph_example.csv": "numbers and no names",
    "pymovements_testfiles/judo1000_example.csv": TOO_SHORT,
    "pymovements_testfiles/missing_values_example.csv": "row 2: 3 cells",
    "pymovements_testfiles/monocular_example.csv": TOO_SHORT,
    "pymovements_testfiles/monocular_example.tsv": TOO_SHORT,
    "pymovements_testfiles/potec_example.tsv": TOO_SHORT,
    "pymovements_testfiles/potec_word_aoi_b0.tsv": "no columns of gaze are recognised",
    "pymovements_testfiles/potsdam_binge_pvt_example.csv": "no fixation in 29 samples",
    "pymovements_testfiles/sbsat_example.csv": TOO_SHORT,
    "pymovements_testfiles/test.jsonl": "JSON lines without image_id",
    "pymovements_testfiles/toy_text_1_1_aoi.csv": "no columns of gaze are recognised",
}
# read as well; their fixations come from raw samples or have no row of their own to look up
ALSO_READ = {
    "emdat/4Ctest.csv.gz": 8,
    "eyefeatures_pupil/gazes_subset.csv.gz": 6,
    "tobii_studio/Rec_02.tsv": 13,
    "tobii_studio/Rec_04-All-Data-2stimuli.tsv": 4,
}


@pytest.fixture
def exports(shared_data):
    return shared_data / "gaze_formats"


@pytest.mark.shared
def test_every_real_export_is_accounted_for(exports):
    files = {str(path.relative_to(exports)) for path in exports.glob("*/*") if "LICENSE" not in path.name}

    assert files == set(REAL) | set(REFUSED) | set(ALSO_READ)


def options_for(name):
    return (
        GazeOptions(width=1920, height=1080) if "no_dummy" in name else SCREEN if "Rec_0" not in name else GazeOptions()
    )


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_real_export_gives_the_values_in_the_file(exports, name, tmp_path):
    kind, image_id, x, y, onset, duration = REAL[name]
    options = options_for(name) if "tobii_studio" not in name else GazeOptions()

    scanpaths = read_gaze(exports / name, options=options)

    assert scanpaths[0].extra["format"] == kind
    assert scanpaths[0].image_id == image_id
    assert first(scanpaths[0]) == pytest.approx([x, y, onset, duration])
    write_canonical(scanpaths, tmp_path / "canonical.jsonl")
    back = parse_canonical((tmp_path / "canonical.jsonl").read_text(), "canonical.jsonl")
    assert len(back) == len(scanpaths)
    for one, other in zip(scanpaths, back, strict=True):
        assert all(
            np.array_equal(getattr(one, key), getattr(other, key)) for key in ("x", "y", "onset_s", "duration_s")
        )


@pytest.mark.shared
@pytest.mark.parametrize("name", REFUSED)
def test_real_export_is_refused_with_its_reason(exports, name):
    with pytest.raises(InputError, match=REFUSED[name]):
        read_gaze(exports / name, options=SCREEN)


@pytest.mark.shared
@pytest.mark.parametrize("name", ALSO_READ)
def test_real_export_is_read(exports, name):
    options = SCREEN if "tobii_studio" not in name else GazeOptions()
    scanpaths = read_gaze(exports / name, options=options)

    count = ALSO_READ[name]
    assert count == (len(scanpaths) if "gazes" in name else sum(map(len, scanpaths)))


@pytest.mark.shared
def test_headerless_real_export_is_read_when_columns_are_declared(exports):
    options = GazeOptions(width=1280, height=1024, columns={"x": "0", "y": "1", "time": "0"})
    with pytest.raises(InputError, match="time"):
        read_gaze(exports / "pymovements_testfiles/gazegraph_example.csv", options=options)


def test_compressed_file_is_unpacked(tmp_path):
    path = tmp_path / "gaze.csv.gz"
    path.write_bytes(gzip.compress(b"x,y,duration\n10,20,0.5\n"))

    assert first(read_gaze(path, options=SIZE)[0]) == [10, 20, 0, 0.5]


@pytest.mark.parametrize("module", [gaze_formats, scanpath])
def test_reading_gaze_needs_the_standard_library_and_numpy_only(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])

    assert names - set(sys.stdlib_module_names) == {"numpy"}


def test_recognise_names_the_format(tmp_path):
    assert recognise(EYELINK, tmp_path) == "eyelink"
    assert recognise(EGD_HEADER, tmp_path) == "egd"
    assert recognise(REFLACX_HEADER, tmp_path) == "reflacx"
    assert recognise(TOBII_PRO, tmp_path) == "tobii"
    assert recognise("[{}]", tmp_path) == "gazesearch"
    assert recognise("x,y,duration\n", tmp_path) == "csv"
