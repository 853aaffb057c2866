package conveyor_test

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/conveyor-ci/conveyor/clients/go/conveyor"
)

func TestStructKeepsWhatJSONCanSay(t *testing.T) {
	type spec struct {
		Name  string         `json:"name"`
		Count int64          `json:"count"`
		Ratio float64        `json:"ratio"`
		More  map[string]any `json:"more"`
		List  []any          `json:"list"`
	}
	given := spec{"ä\u2028\uFFFD\\ufffd", 1 << 53, 2.5, map[string]any{"a": nil, "b": true}, []any{"x", 1.0}}
	value, err := conveyor.Struct(given)
	if err != nil {
		t.Fatal(err)
	}
	var got spec
	if err := conveyor.Decode(value, &got); err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(given)
	if have, _ := json.Marshal(got); string(have) != string(want) {
		t.Errorf("got %s, want %s", have, want)
	}
}

func TestStructRefusesWhatWouldChange(t *testing.T) {
	deep := map[string]any{}
	for range 32 {
		deep = map[string]any{"d": deep}
	}
	for _, each := range []struct {
		value any
		want  string
	}{
		{
			map[string]any{"build": map[string]any{"ids": []any{1, int64(1)<<53 + 1}}},
			"$.build.ids[1]: the integer 9007199254740993",
		},
		{map[string]any{"a b": uint64(math.MaxUint64)}, `$["a b"]: the integer 18446744073709551615`},
		{map[string]any{"n": json.Number("1e999")}, "$.n: the number 1e999"},
		{map[string]any{"n": math.NaN()}, "$: json: unsupported value: NaN"},
		{map[string]any{"t": []string{"a\xffb"}}, "$.t[0]: the text is not valid Unicode"},
		{&struct{ Name string }{"\xff"}, "$.Name: the text is not valid Unicode"},
		{map[string]string{"a\xff": ""}, "$: a key is not valid Unicode"},
		{json.RawMessage("{\"a\": \"\xff\"}"), "the text is not valid Unicode"},
		{deep, ".d: more than 32 levels"},
		{[]any{1}, "$: not an object but a JSON array"},
		{7, "$: not an object but a JSON number"},
	} {
		_, err := conveyor.Struct(each.value)
		var bad *conveyor.ValueError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), each.want) {
			t.Errorf("got %v, want %s", err, each.want)
		}
	}
}

func TestParseStructTakesOneObject(t *testing.T) {
	for _, text := range []string{"", "{", "[]", "{} {}", `{"a":1}]`, "NaN"} {
		if _, err := conveyor.ParseStruct([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	if value, err := conveyor.ParseStruct([]byte(`{"a":1e3}`)); err != nil || value.AsMap()["a"] != 1000.0 {
		t.Error(value, err)
	}
}
