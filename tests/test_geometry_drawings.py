"""Files of polygons: every writer's, and what is wrong with some."""

import json
import logging
from pathlib import Path

import pytest
import shapely

from wsi_mil.errors import PolygonError
from wsi_mil.geometry import Drawing, read_drawing, to_geojson

SQUARE = [[0, 0], [0, 10], [10, 10], [10, 0], [0, 0]]
INNER = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
APART = [[20, 0], [30, 0], [30, 10], [20, 10], [20, 0]]
BOW = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]


def feature(rings, properties=None, kind="Polygon") -> dict:
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


@pytest.fixture
def read(tmp_path: Path):
    def read(content, name: str = "a.geojson") -> Drawing:
        file = tmp_path / name
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_drawing(file)

    return read


def areas(drawing: Drawing) -> dict[str, float]:
    assert all(area.is_valid for area in drawing.areas.values())
    return {name: area.area for name, area in drawing.areas.items()}


def asap(*annotations: tuple[str, list], kind: str = "Polygon") -> str:
    text = ""
    for group, points in annotations:
        lines = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}" />' for i, (x, y) in enumerate(points))
        text += f'<Annotation Name="a" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58">'
        text += f"<Coordinates>{lines}</Coordinates></Annotation>"
    groups = '<AnnotationGroups><Group Name="Tumor" PartOfGroup="None" /></AnnotationGroups>'
    return f'<?xml version="1.0"?><ASAP_Annotations><Annotations>{text}</Annotations>{groups}</ASAP_Annotations>'


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor", "colorRGB": -3670016}, "isLocked": False, "measurements": []}, "Tumor"),
        ({"object_type": "annotation", "classification": {"name": "Tumor", "colorRGB": -3670016}}, "Tumor"),
        ({"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}}, "Tumor"),
        ({"objectType": "annotation", "classification": {"names": ["Tumor", "Positive"]}}, "Tumor: Positive"),
        ({"objectType": "annotation", "name": "left one", "classification": {"name": "Tumor"}}, "Tumor"),
        ({"classification": '{ "name": "Tumor", "color": [ 200, 0, 0 ] }'}, "Tumor"),
        ({"classification": "Tumor"}, "Tumor"),
        ({"objectType": "annotation", "name": "UT", "color": [255, 0, 0]}, "UT"),
        ({"objectType": "annotation"}, "Unclassified"),
        ({"classification": None}, "Unclassified"),
        ({"classification": {"name": None}}, "Unclassified"),
        ({}, "Unclassified"),
        (None, "Unclassified"),
    ],
)
def test_the_class_is_found_in_every_version_of_qupath(read, properties, name):
    assert areas(read([feature([SQUARE], properties)])) == {name: 100}


@pytest.mark.parametrize(
    "content",
    [
        {"type": "FeatureCollection", "features": [feature([SQUARE, INNER])]},
        [feature([SQUARE, INNER])],
        feature([SQUARE, INNER]),
        {"type": "Polygon", "coordinates": [SQUARE, INNER]},
        {"type": "MultiPolygon", "coordinates": [[SQUARE, INNER]]},
        {"type": "GeometryCollection", "geometries": [{"type": "Polygon", "coordinates": [SQUARE, INNER]}]},
        feature([[[*point, 0.0] for point in SQUARE], INNER], {}),
    ],
)
@pytest.mark.parametrize("name", ["a.geojson", "a.json", "A.GeoJSON"])
def test_every_shape_of_geojson_is_read_with_its_holes(read, content, name):
    drawing = read(content, name)
    assert areas(drawing) == {"Unclassified": 96}
    assert drawing.bounds.tolist() == [[0, 0, 10, 10]]
    assert drawing.cut.is_empty


def test_polygons_of_a_class_are_united_and_classes_are_sorted(read):
    b, a = {"classification": {"name": "b"}}, {"classification": {"name": "a"}}
    overlapping = [[5, 0], [15, 0], [15, 10], [5, 10]]
    drawing = read([feature([SQUARE], b), feature([overlapping], b), feature([[APART], [INNER]], a, "MultiPolygon")])
    assert list(areas(drawing).items()) == [("a", 104), ("b", 150)]
    assert len(drawing.bounds) == 4


def test_our_own_outlines_read_back(tmp_path):
    ring = shapely.box(0, 0, 400, 300).difference(shapely.box(100, 100, 200, 200))
    file = tmp_path / "a.geojson"
    file.write_bytes(to_geojson([ring], "Tissue"))
    assert read_drawing(file).areas["Tissue"].equals(ring)
    file.write_bytes(to_geojson([], "Tissue"))
    assert read_drawing(file).areas == {}
    assert read_drawing(file).bounds.shape == (0, 4)


def test_lines_that_cross_themselves_are_repaired_and_counted(read, caplog):
    caplog.set_level(logging.INFO)
    assert areas(read([feature([BOW]), feature([APART])])) == {"Unclassified": 150}
    assert "a.geojson: repaired 1 polygons that cross themselves" in caplog.text


def test_a_loop_drawn_twice_around_is_inside(read):
    twice = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0], [9, 1], [9, 9], [1, 9], [0, 0]]
    assert areas(read(feature([twice])))["Unclassified"] == pytest.approx(100, abs=1)


def test_what_has_no_area_is_passed_over_and_counted(read, caplog):
    flat = [
        feature([5, 5], kind="Point"),
        feature([[0, 0], [5, 5]], kind="LineString"),
        {"type": "Feature", "geometry": None, "properties": {}},
        feature([]),
        feature([[]]),
        feature([[[0, 0], [1, 1]]]),
        feature([[[0, 0], [5, 5], [10, 10], [0, 0]]]),
    ]
    assert areas(read([*flat, feature([SQUARE, [[1, 1]]])])) == {"Unclassified": 100}
    assert "passed over 7 points, lines and other things without an area" in caplog.text


@pytest.mark.parametrize("group", ["Tumor", "_0", "_1"])
@pytest.mark.parametrize("hole", ["Exclusion", "_2"])
def test_holes_of_camelyon16_are_cut_out(read, group, hole):
    drawing = read(asap((group, SQUARE[:-1]), (hole, INNER)), "a.xml")
    assert areas(drawing) == {"Tumor": 96}
    assert drawing.cut.area == 4


def test_groups_of_asap_are_classes_and_points_fractional(read):
    drawing = read(asap(("Stroma", [(0.5, 0), (0.5, 10), (10, 10), (10, 0)]), ("None", APART)), "a.xml")
    assert areas(drawing) == {"Stroma": 95, "Unclassified": 100}
    assert areas(read(asap(("a", [(1, 1)]), kind="Dot"), "a.xml")) == {}


def test_camelyon17_paints_normal_over_metastases(read):
    assert areas(read(asap(("normal", INNER), ("metastases", SQUARE)), "a.xml")) == {"metastases": 96, "normal": 4}
    assert areas(read(asap(("normal", INNER), ("Stroma", SQUARE)), "a.xml")) == {"Stroma": 100, "normal": 4}


def test_the_json_of_camelyon16(read):
    content = {"positive": [{"name": "_0", "vertices": SQUARE}], "negative": [{"name": "_1", "vertices": INNER}]}
    assert areas(read(content, "a.json")) == {"Normal": 4, "Tumor": 96}
    assert areas(read({"positive": [], "negative": content["negative"]}, "a.json")) == {"Normal": 4}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.geojson", "{", "is damaged or no JSON"),
        ("a.geojson", "", "is damaged or no JSON"),
        ("a.geojson", "5", "no GeoJSON with features"),
        ("a.json", {"polygons": []}, "no GeoJSON with features"),
        ("a.json", [[1, 2]], "no GeoJSON with features"),
        ("a.json", {"type": "FeatureCollection"}, "no GeoJSON with features"),
        ("a.json", {"type": "Topology"}, "geometry of type Topology"),
        ("a.json", [feature([SQUARE], kind="Circle")], "geometry of type Circle"),
        ("a.json", [feature(None)], "Polygon without a list of coordinates"),
        ("a.json", [feature(SQUARE)], "no list of points"),
        ("a.json", [feature([["x", "y"], ["z", "a"]])], "no list of points"),
        ("a.json", [feature([[[0, 0], [1, None], [2, 2]]])], "lies on no slide|no list of points"),
        ("a.json", '{"type":"Polygon","coordinates":[[[0,0],[NaN,1],[2,2]]]}', "lies on no slide"),
        ("a.json", [feature([[[0, 0], [1e300, 1], [2, 2]]])], "lies on no slide"),
        ("a.json", [feature([SQUARE], {"classification": "{name"})], "a.json "),
        ("a.json", {"positive": [5]}, "its positive is no list"),
        ("a.json", {"negative": [{"name": "_0"}]}, "without a list of vertices"),
        ("a.xml", "<ASAP_Annotations>", "is damaged or no XML"),
        ("a.xml", "<Annotations><Annotation /></Annotations>", r"another program \(<Annotations>\), not of ASAP"),
        ("a.xml", asap(("Tumor", [("a", 0), (1, 1), (2, 2)])), "no list of points"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name_with_the_next_step(read, name, content, what):
    with pytest.raises(PolygonError, match=what) as caught:
        read(content, name)
    assert name in str(caught.value)
    assert "export it again, from QuPath as GeoJSON or from ASAP as XML" in str(caught.value)


def test_bytes_that_are_no_text_and_files_that_are_not_there_are_refused(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00\xd8")
    with pytest.raises(PolygonError, match=r"a\.json is damaged or no JSON"):
        read_drawing(tmp_path / "a.json")
    with pytest.raises(PolygonError, match=r"b\.json cannot be read: No such file"):
        read_drawing(tmp_path / "b.json")


@pytest.fixture(scope="module")
def annotations(shared: Path) -> Path:
    return shared / "data/annotations"


@pytest.mark.parametrize("number", ["001", "003"])
def test_camelyon16_is_the_same_from_xml_and_json(annotations, number):
    from_xml = read_drawing(annotations / f"tumor_{number}.xml").areas["Tumor"]
    from_json = read_drawing(annotations / f"Tumor_{number}.json").areas["Tumor"]
    assert shapely.symmetric_difference(from_xml, from_json).area < 1e-6 * from_json.area


def test_camelyon16_with_its_holes(annotations):
    drawn = json.loads((annotations / "Tumor_016.json").read_text())
    drawing = read_drawing(annotations / "Tumor_016.json")
    holes = shapely.make_valid([shapely.Polygon(hole["vertices"]) for hole in drawn["negative"]])
    tumour = drawing.areas["Tumor"]
    assert len(drawing.bounds) == 9
    assert tumour.area == pytest.approx(1.607e8, rel=1e-3)
    assert shapely.area(shapely.intersection(tumour, holes)).max() < 1
    whole = shapely.union_all(shapely.make_valid([shapely.Polygon(one["vertices"]) for one in drawn["positive"]]))
    assert whole.area - tumour.area == pytest.approx(shapely.union_all(holes).intersection(whole).area, rel=1e-3)


def test_other_programs_files(annotations):
    holed = read_drawing(annotations / "holed.geojson")
    (area,) = holed.areas.values()
    assert area.area == pytest.approx(7_827_735, rel=1e-6)
    assert len(area.interiors) == 1
    assert list(read_drawing(annotations / "qupath05.geojson").areas) == ["I", "UT"]
