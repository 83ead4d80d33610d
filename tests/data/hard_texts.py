"""Captions that tokenizers disagree about."""

CONTROL = "".join(map(chr, range(1, 32))) + "\x7f\x80\x9f"

HARD_TEXTS = [
    "a photo of a small dog on the beach",
    "A Photo Of TWO dogs, 12 cats & 3.5 birds!?",
    "don't we'll they'RE I'm you've he'd it's 'quoted' rock'n'roll I'\u017f",
    "",
    "   \t \n ",
    "  leading and   inner\twhite\u00a0space\u3000here\u2028there  ",
    "naïve café ångström Ǆ ß ẞ İstanbul ΟΔΥΣΣΕΥΣ ΣΑΣ",
    "e\u0301 a\u0308 o\u0328\u0304 x\u0345y \u0301alone \u1e69 s\u0323\u0307",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇫🇷 ❤️ 1️⃣ ☺",
    "Tom &amp; Jerry &lt;3 &amp;quot;x&amp;quot; &eacute; &#233; &#x1F600; &nbsp;&notanentity;",
    "“curly” ‘single’ it’s «guillemets» … – — ‐ ﬁne oﬃce ﬂag",
    "mojibake: schÃ¶n, itâ€™s, Ã©tÃ©",
    "ｆｕｌｌ ｗｉｄｔｈ １２３ ｶﾀｶﾅ ①② ½ x² H₂O ™ ㎏",
    "中文没有空格 日本語のテキスト 한국어 문장 ไทยไม่มีช่องว่าง",
    "שלום עולם \u200fمرحبا بالعالم\u200e ١٢٣ हिन्दी வணக்கம்",
    "zero\u200bwidth\u200djoiner\ufeff soft\u00adhyphen \u2060",
    f"control {CONTROL} characters \x1b[31mred\x1b[0m",
    "snake_case_word __init__ a_photo_of C++ #hashtag @user http://example.org/a?b=c&d=e %20",
    "\u2581underline \u2581\u2581 meta",
    "...---...!!!???,,,;;; (([{}])) \\ / | ~ ` ^",
    "0 00 000 1234567890 3.14159 1,000,000",
    "donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 4,
    "x" * 600,
    "very long caption with many words " * 60,
    "🐶" * 200,
    "a b " * 37 + "exact",
    "\U0001d49c\U0001d4b7 \U00010348 \U0001f9ff \ue000 \uffff \U000e0041",
    "line one\r\nline two\rline three\x85line four",
    "<b>bold</b> & <i>it</i> <3 a<b>c",
]
# Their ids are text here and special in the originals: kept apart.
SPECIAL_TEXTS = [
    "<start_of_text> hi <end_of_text>",
    "<|startoftext|> a dog <|endoftext|>",
    "[CLS] a dog [SEP] [MASK] [PAD]",
    "<s> a dog </s> <pad> <unk> <mask>",
    "<bos> a dog <eos>",
    "<END_OF_TEXT> <|EndOfText|> </S> <EOS> [sep]",
]
