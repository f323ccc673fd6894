use super::*;

fn rendered(template: &str) -> Result<String, String> {
    let pairs = |pairs: &[(&str, &str)], headers| {
        let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Some(Value::Map(Map::new(owned, headers)))
    };
    let lookup = |path: &[String], _: &[Value]| match path.join(".").as_str() {
        "Request" => Some(Value::Object(vec!["Request".into()], "a request".into())),
        "Request.Method" => Some(Value::Text("GET".into())),
        "Request.RequestURI" => Some(Value::Text("/a?b=\"c\"".into())),
        "Request.TLS" => Some(Value::Nil),
        "Response" => Some(Value::Object(vec!["Response".into()], "a response".into())),
        "Response.Code" => Some(Value::Integer(200)),
        "Response.Latency" => Some(Value::Float(0.000_051)),
        "Request.Header" => pairs(&[("x-a", "b"), ("x-a", "c"), ("accept", "*/*")], true),
        _ => None,
    };
    Template::parse(template)?.render(&lookup)
}

fn all(cases: &[(&str, &str)]) {
    for (template, expected) in cases {
        assert_eq!(rendered(template).as_deref(), Ok(*expected), "{template}");
    }
}

#[test]
fn what_templates_use_is_rendered_as_go_does() {
    all(&[
        ("{{.Request.Method}} {{.Response.Code}}", "GET 200"),
        ("{{js .Request.RequestURI}}", "/a?b\\u003D\\\"c\\\""),
        ("{{.Response.Latency}}s", "5.1e-05s"),
        ("TLS: {{.Request.TLS}}", "TLS: <nil>"),
        ("{{.Request.Header.Get \"x-A\"}} {{\"X-A\" | .Request.Header.Get}}", "b b"),
        ("{{.Request.Method | printf \"%s-%q\" \"a\"}}", "a-\"GET\""),
        ("{{if eq .Response.Code 200 201}}ok{{else}}bad{{end}}", "ok"),
        ("{{if ne .Response.Code 200}}a{{else if (not .Request.TLS)}}b{{end}}", "b"),
        ("a {{- /* gone }} */ -}} b {{- .Request.Method -}} c", "abGETc"),
        ("{{len .Request.Method}} {{len .Request.Header}}", "3 2"),
        ("{{index .Request.Header \"X-A\"}} {{index .Request.Header \"X-A\" 1}}", "[b c] c"),
        ("{{.Request.Header}}", "map[Accept:[*/*] X-A:[b c]]"),
        ("{{.Request.Header.Accept}} {{.Request.Header.None}}", "[*/*] <no value>"),
        ("{{slice .Request.Method 1}} {{slice .Request.Method 0 2}}", "ET GE"),
        ("{{and .Request.TLS .Request.TLS.Version}} {{or .Request.TLS \"none\"}}", "<nil> none"),
        ("{{if and (ge .Response.Code 200) (lt .Response.Code 300)}}2xx{{end}}", "2xx"),
        (
            "{{1e6}} {{123456789.5}} {{1e20}} {{1e21}} {{printf \"%g %v\" 1e6 1e6}}",
            "1e+06 1.234567895e+08 1e+20 1e+21 1e+06 1e+06",
        ),
        ("{{eq .Request.TLS nil}} {{gt \"b\" \"a\"}} {{le 1.5 1.5}}", "true true true"),
        ("{{print 1 2 \"a\" 3}}|{{println 1 \"a\"}}", "1 2a3|1 a\n"),
        ("{{html \"<a b='c'>\"}} {{urlquery \"a b&c\"}}", "&lt;a b=&#39;c&#39;&gt; a+b%26c"),
        (
            "{{\"\\u00e9\\x41\\n\\101\"}} {{'a'}} {{`raw\\n`}} {{0x1F}} {{1_000}} {{-3}} {{.5}} {{1e3}}",
            "éA\nA 97 raw\\n 31 1000 -3 0.5 1000",
        ),
    ]);
}

#[test]
fn blocks_and_variables_are_gos() {
    all(&[
        ("{{with .Response}}{{.Code}} {{$.Request.Method}}{{end}}", "200 GET"),
        ("{{with .Request.TLS}}a{{else with .Response}}{{.Code}}{{else}}c{{end}}", "200"),
        ("{{with $code := .Response.Code}}{{$code}} {{.}}{{end}}", "200 200"),
        ("{{range .Request.Header}}{{.}};{{end}}", "[*/*];[b c];"),
        ("{{range $name, $values := .Request.Header}}{{$name}}={{index $values 0}} {{end}}", "Accept=*/* X-A=b "),
        ("{{range $at, $one := .Request.Header.Values \"x-a\"}}{{if $at}},{{end}}{{$one}}{{end}}", "b,c"),
        ("{{range $one := .Request.Header.Values \"x-a\"}}{{$one}}{{end}}", "bc"),
        ("{{range .Request.Header.Values \"none\"}}a{{else}}none{{end}}", "none"),
        ("{{range $i := 5}}{{if eq $i 1}}{{continue}}{{end}}{{if eq $i 3}}{{break}}{{end}}{{$i}}{{end}}", "02"),
        ("{{$x := 1}}{{if true}}{{$x = 2}}{{$y := 3}}{{$y}}{{end}}{{$x}}", "32"),
        ("{{$x := 1}}{{if true}}{{$x := 2}}{{$x}}{{end}}{{$x}}", "21"),
        ("{{define \"a\"}}<{{.}}>{{end}}{{template \"a\" .Response.Code}}{{template \"a\"}}", "<200><<no value>>"),
        ("{{block \"b\" .Response}}{{.Code}}{{end}}", "200"),
        ("{{(.Response).Code}} {{(index .Request.Header \"X-A\" | len)}}", "200 2"),
        ("{{\n  .Request.Method\n}}", "GET"),
    ]);
}

#[test]
fn printf_is_gos() {
    all(&[
        (r#"{{printf "%d|%5d|%-5d|%05d|%+d|% d" 42 42 42 42 42 42}}"#, "42|   42|42   |00042|+42| 42"),
        (
            r#"{{printf "%x|%X|%#x|%#08x|%o|%O|%b|%c|%U" 255 255 255 255 8 8 5 65 233}}"#,
            "ff|FF|0xff|0x000000ff|10|0o10|101|A|U+00E9",
        ),
        (
            r#"{{printf "%f|%.2f|%8.3f|%e|%g|%G" 1.5 1.5 1.5 1.5 0.000051 0.000051}}"#,
            "1.500000|1.50|   1.500|1.500000e+00|5.1e-05|5.1E-05",
        ),
        (
            r#"{{printf "%.3g|%g|%v|%08.3f|%+.1e" 1234.5 1234.5 100.0 -1.5 12345.0}}"#,
            "1.23e+03|1234.5|100|-001.500|+1.2e+04",
        ),
        (
            r#"{{printf "%s|%10s|%-10s|%.2s|%q|%x|%X|% x" "abc" "abc" "abc" "abc" "a\"b" "abc" "abc" "abc"}}"#,
            "abc|       abc|abc       |ab|\"a\\\"b\"|616263|616263|61 62 63",
        ),
        (r#"{{printf "%v|%t|%5t|%T|%T|%T" nil true false "a" 1 1.5}}"#, "<nil>|true|false|string|int|float64"),
        (r#"{{printf "%d %s" "a" 1}}"#, "%!d(string=a) %!s(int=1)"),
        (
            r#"{{printf "%d"}} {{printf "a" 1 "b"}} {{printf "%"}} {{printf "100%%"}}"#,
            "%!d(MISSING) a%!(EXTRA int=1, string=b) %!(NOVERB) 100%",
        ),
        (r#"{{printf "%*d|%-*d|%.*f" 5 42 5 42 1 1.25}}"#, "   42|42   |1.2"),
        (
            r#"{{printf "%v %s %q" .Request.Header .Request.Header.Accept .Request.Header.Accept}}"#,
            "map[Accept:[*/*] X-A:[b c]] [*/*] [\"*/*\"]",
        ),
        (r#"{{printf "%q %+q %#q %q" "é\t" "é" "a`b" 'x'}}"#, "\"é\\t\" \"\\u00e9\" \"a`b\" 'x'"),
        (r#"{{printf "%#v %.0f %6.2f%%" "a" 2.5 99.5}}"#, "\"a\" 2  99.50%"),
    ]);
}

#[test]
fn what_is_wrong_is_said() {
    for (template, says) in [
        ("{{", "unclosed action"),
        ("a\n\n{{nothing}}", "line 3: function \"nothing\" not defined"),
        ("{{range .X}}", "without {{end}}"),
        ("{{if true}}", "without {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{else}}", "unexpected {{else}}"),
        ("{{break}}", "outside {{range}}"),
        ("{{$x}}", "undefined variable"),
        ("{{if true}}{{$x := 1}}{{end}}{{$x}}", "undefined variable"),
        ("{{(}}", "missing value"),
        ("{{.X)}}", "unexpected"),
        ("{{\"a}}", "unterminated"),
        ("{{define a}}{{end}}", "name in quotes"),
        ("{{1 2}}", "only functions"),
        ("{{.Nothing}}", "can't evaluate field .Nothing"),
        ("{{.Request.Method.X}}", "can't evaluate field X of string"),
        ("{{.Request.TLS.Version}}", "nil pointer"),
        ("{{eq .Response.Code \"a\"}}", "incompatible types"),
        ("{{lt .Response.Latency 1}}", "incompatible types"),
        ("{{index .Request.Header \"X-A\" 2}}", "index out of range: 2"),
        ("{{template \"none\"}}", "not defined"),
        ("{{define \"a\"}}{{template \"a\"}}{{end}}{{template \"a\"}}", "calls itself"),
        ("{{range 1000000000}}{{end}}", "more than"),
        ("{{range $i := 1000}}{{range 1000}}{{end}}{{end}}", "turns of range"),
        ("{{range 1000}}{{printf \"%9999d\" 1}}{{end}}", "bytes"),
        ("{{len 1}}", "len does not take (int)"),
    ] {
        let error = rendered(template).expect_err(template);
        assert!(error.contains(says), "{template}: {error}");
    }
    let deep = format!("{}1{}", "(".repeat(1000), ")".repeat(1000));
    assert!(rendered(&format!("{{{{{deep}}}}}")).expect_err("deep").contains("nested"));
    let deep = format!("{}{}", "{{if true}}".repeat(1000), "{{end}}".repeat(1000));
    assert!(rendered(&deep).expect_err("deep").contains("nested"));
}

#[test]
fn floats_are_written_as_go_writes_them() {
    for (value, text) in
        [(0.0, "0"), (1.5, "1.5"), (0.0001, "0.0001"), (0.00001, "1e-05"), (999_999.0, "999999"), (1e6, "1e+06")]
    {
        assert_eq!(float(value), text);
    }
}
