"""English sentences and their German translations, made from a small grammar: as many as are
wanted, from a seed.

Some 130 words of each language, and what makes translating more than looking words up: three
genders and four cases, strong, weak and mixed endings of adjectives, separable verbs, the verb in
second place, at the end of its clause or cut in two, *haben* and *sein*, *nicht* and *kein*, time
before place. English has its own: *do*, *a* and *an*, two objects the other way round. The
sentences mean little, and the times of two clauses need not fit each other; else the grammar of
both sides is right.
"""

import numpy as np
from reformer_ref._arguments import require_choice, require_int


def _entries(text):
    """A table, entries divided by "|" or new lines: a list of lists of words, in which "_" stands
    for a blank.
    """
    entries = [entry.split() for line in text.strip().split("\n") for entry in line.split("|")]
    return [[word.replace("_", " ") for word in entry] for entry in entries]


NOMINATIVE, ACCUSATIVE, DATIVE, GENITIVE = range(4)
PLURAL = "p"  # beside the genders m, f, n: endings of the plural are the same for all

# English singular and plural; gender; German singular and plural; the other cases of the singular
# where they end in -n
PEOPLE = _entries("""
man men m Mann Männer|woman women f Frau Frauen|child children n Kind Kinder|teacher teachers m Lehrer Lehrer
doctor doctors f Ärztin Ärztinnen|neighbour neighbours m Nachbar Nachbarn Nachbarn|boy boys m Junge Jungen Jungen
girl girls n Mädchen Mädchen|dog dogs m Hund Hunde|cat cats f Katze Katzen|bird birds m Vogel Vögel
horse horses n Pferd Pferde|sister sisters f Schwester Schwestern|brother brothers m Bruder Brüder
painter painters f Malerin Malerinnen|fox foxes m Fuchs Füchse|guest guests m Gast Gäste
queen queens f Königin Königinnen|prince princes m Prinz Prinzen Prinzen|bear bears m Bär Bären Bären
""")
THINGS = _entries("""
house houses n Haus Häuser|book books n Buch Bücher|apple apples m Apfel Äpfel|flower flowers f Blume Blumen
letter letters m Brief Briefe|picture pictures n Bild Bilder|key keys m Schlüssel Schlüssel
lamp lamps f Lampe Lampen|chair chairs m Stuhl Stühle|ship ships n Schiff Schiffe|coat coats m Mantel Mäntel
clock clocks f Uhr Uhren|ball balls m Ball Bälle|glass glasses n Glas Gläser|hat hats m Hut Hüte
box boxes f Kiste Kisten|stone stones m Stein Steine|egg eggs n Ei Eier|orange oranges f Orange Orangen
""")
PLACES = _entries("""
garden gardens m Garten Gärten|town towns f Stadt Städte|tree trees m Baum Bäume|bridge bridges f Brücke Brücken
river rivers m Fluss Flüsse|window windows n Fenster Fenster|door doors f Tür Türen|table tables m Tisch Tische
forest forests m Wald Wälder|street streets f Straße Straßen|car cars n Auto Autos|school schools f Schule Schulen
""")
# English infinitive, third person, past; German third person, infinitive, participle, separable
# prefix or "-", and
# "hat" or "ist", with which the perfect is made. The lists are named after the objects of their
# verbs.
PERSON = _entries("""
see sees saw sieht sehen gesehen - hat|hear hears heard hört hören gehört - hat
love loves loved liebt lieben geliebt - hat
look_for looks_for looked_for sucht suchen gesucht - hat|pick_up picks_up picked_up holt holen abgeholt ab hat
visit visits visited besucht besuchen besucht - hat|draw draws drew zeichnet zeichnen gezeichnet - hat
invite invites invited lädt laden eingeladen ein hat|forget forgets forgot vergisst vergessen vergessen - hat
""")
THING = _entries("""
find finds found findet finden gefunden - hat|buy buys bought kauft kaufen gekauft - hat
paint paints painted malt malen gemalt - hat|carry carries carried trägt tragen getragen - hat
open opens opened macht machen aufgemacht auf hat|sell sells sold verkauft verkaufen verkauft - hat
bring_along brings_along brought_along bringt bringen mitgebracht mit hat
need needs needed braucht brauchen gebraucht - hat
lose loses lost verliert verlieren verloren - hat
""")
PERSON_IN_DATIVE = _entries("""
help helps helped hilft helfen geholfen - hat|follow follows followed folgt folgen gefolgt - ist
thank thanks thanked dankt danken gedankt - hat|listen_to listens_to listened_to hört hören zugehört zu hat
""")
PERSON_AND_THING = _entries("""
give gives gave gibt geben gegeben - hat|show shows showed zeigt zeigen gezeigt - hat
send sends sent schickt schicken geschickt - hat|bring brings brought bringt bringen gebracht - hat
""")
NOTHING = _entries("""
sleep sleeps slept schläft schlafen geschlafen - hat|laugh laughs laughed lacht lachen gelacht - hat
sing sings sang singt singen gesungen - hat|work works worked arbeitet arbeiten gearbeitet - hat
arrive arrives arrived kommt kommen angekommen an ist|wait waits waited wartet warten gewartet - hat
run_away runs_away ran_away läuft laufen weggelaufen weg ist|dance dances danced tanzt tanzen getanzt - hat
""")
ADJECTIVES = _entries("""
old alt|young jung|small klein|big groß|red rot|green grün|beautiful schön|new neu|happy glücklich|strong stark
strange seltsam|friendly freundlich|blue blau|brave mutig|cold kalt|heavy schwer|poor arm|rich reich
unusual ungewöhnlich|important wichtig
""")
ADVERBS = _entries("""
today heute -|often oft -|sometimes manchmal -|yesterday gestern past|tomorrow morgen future|every_day jeden_Tag -
in_the_evening am_Abend -|last_year letztes_Jahr past|soon bald future
""")
MODALS = _entries("can can kann können|have_to has_to muss müssen|want_to wants_to will wollen|may may darf dürfen")
PREPOSITIONS = _entries("in in|under unter|behind hinter|next_to neben|near bei")
CONJUNCTIONS = _entries("because weil|although obwohl|while während|before bevor")
PRONOUNS = _entries("I ich 1|we wir p|he er 3|she sie 3|they sie p")
DETERMINERS = ("the", "a", "my", "our", "this", "")  # "": none, in the plural

EIN_WORDS = {"a": "ein", "my": "mein", "our": "unser", "no": "kein"}
ARTICLES = {  # by gender: nominative, accusative, dative, genitive
    "the": {"m": "der den dem des", "f": "die die der der", "n": "das das dem des", PLURAL: "die die den der"},
    "this": {
        "m": "dieser diesen diesem dieses", "f": "diese diese dieser dieser", "n": "dieses dieses diesem dieses",
        PLURAL: "diese diese diesen dieser",
    },
}  # fmt: skip
EIN = {
    "m": ("", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("", "", "em", "es"),
    PLURAL: ("e", "e", "en", "er"),
}
ENDINGS = {  # of adjectives after the-words, after ein-words, after nothing
    "weak": {"m": ("e", "en", "en"), "f": ("e", "e", "en"), "n": ("e", "e", "en"), PLURAL: ("en",) * 3},
    "mixed": {"m": ("er", "en", "en"), "f": ("e", "e", "en"), "n": ("es", "es", "en"), PLURAL: ("en",) * 3},
    "strong": {PLURAL: ("e", "e", "en")},
}


def pairs(count, seed):
    """``count`` pairs (English, German), tuples of str, no English sentence twice; a pure function
    of its arguments.
    """
    count, seed = require_int("count", count, maximum=10**6), require_int("seed", seed, minimum=0)
    found, grammar = ({}, Grammar(np.random.Generator(np.random.Philox(np.random.SeedSequence([seed])))))
    while len(found) < count:
        english, german = grammar.sentence()
        found.setdefault(english, german)
    return list(found.items())


class Grammar:
    """Sentences, drawn with a `numpy.random.Generator`."""

    def __init__(self, rng):
        if not isinstance(rng, np.random.Generator):
            raise TypeError(f"rng must be a numpy.random.Generator, got {type(rng).__name__}")
        self.rng = rng

    def sentence(self):
        """One pair (English, German): a question, a statement, or two clauses."""
        if self._happens(0.15):
            english, german = self.clause("question")
            return _written(english, "?"), _written(german, "?")
        english, german = self.clause("main")
        if self._happens(0.35):
            and_so, und_so = self._pick(CONJUNCTIONS)
            more, mehr = self.clause("subordinate")
            english, german = f"{english} {and_so} {more}", f"{german}, {und_so} {mehr}"
        return _written(english, "."), _written(german, ".")

    def clause(self, order):
        """(English, German) of a clause; order: "main", "question" or "subordinate"; the last is
        kept short.
        """
        require_choice("order", order, ("main", "question", "subordinate"))
        tense, negated = (
            self._pick(("present",) * 8 + ("past",) * 6 + ("future",) * 3 + ("modal",) * 3),
            self._happens(0.2),
        )
        modal = self._pick(MODALS) if tense == "modal" else None
        verb, objects, said = self._predicate(negated, order == "subordinate")
        who, wer, person = self._subject()
        long = order != "subordinate"
        when = self._pick([a for a in ADVERBS if a[2] in ("-", tense)])[:2] if long and self._happens(0.5) else ("", "")
        where = self._place() if long and self._happens(0.35) else ("", "")
        first = order == "main" and self._happens(0.5)  # time in front
        has, rest = _english_verb(tense, negated, person, verb, modal, order == "question")
        things = [english for english, _ in objects]
        english = [has, who, rest] if order == "question" else [who, has, rest]
        english = [*english, *(things if len(things) < 2 else [things[1], "to " + things[0]]), where[0]]
        english = [when[0], *english] if first else [*english, when[0]]
        middle = [german for _, german in objects] + ["nicht" if negated and not said else "", where[1]]
        hat, ende = _german_verb(tense, person, verb, modal, order == "subordinate")
        if order == "subordinate":
            german = [wer, when[1], *middle, ende, hat]
        elif first and when[1]:
            german = [when[1], hat, wer, *middle, ende]
        else:
            german = [*([hat, wer] if order == "question" else [wer, hat]), when[1], *middle, ende]
        return _joined(english), _joined(german)

    def _predicate(self, negated, short):
        """A verb; its objects as pairs (English, German), the dative first; whether they say the
        negation ("kein").
        """
        kinds = (PERSON, PERSON, THING, THING, PERSON_IN_DATIVE, NOTHING, *([] if short else [PERSON_AND_THING]))
        kind = kinds[self.rng.integers(len(kinds))]
        if kind is NOTHING:
            return self._pick(kind), [], False
        number, in_dative = self._number(), kind is PERSON_IN_DATIVE
        determiner = self._determiner(number)
        said = negated and determiner in ("a", "")
        nouns = THINGS if kind in (THING, PERSON_AND_THING) else PEOPLE
        case = DATIVE if in_dative else ACCUSATIVE
        objects = [self._phrase(nouns, case, number, determiner, "no" if said else determiner)]
        if kind is PERSON_AND_THING:
            number = self._number()
            objects = [self._phrase(PEOPLE, DATIVE, number, self._determiner(number)), *objects]
        return self._pick(kind), objects, said

    def _subject(self):
        """(English, German, person): "1" (I), "3" or "p"."""
        if self._happens(0.3):
            return self._pick(PRONOUNS)
        number = self._number()
        english, german = self._phrase(PEOPLE, NOMINATIVE, number, self._determiner(number) or "the")
        if self._happens(0.12):  # whose
            whose, wessen = self._phrase(PEOPLE, GENITIVE, self._number(), "the")
            english, german = f"{english} of {whose}", f"{german} {wessen}"
        return english, german, PLURAL if number == PLURAL else "3"

    def _phrase(self, nouns, case, number, determiner, german_determiner=None):
        """Determiner, perhaps an adjective, noun: (English, German)."""
        german_determiner = determiner if german_determiner is None else german_determiner
        singular, plural, gender, *forms = self._pick(nouns)
        described, beschrieben = ("", "") if case == GENITIVE or self._happens(0.55) else self._pick(ADJECTIVES)
        gender, noun = (PLURAL, plural) if number == PLURAL else (gender, singular)
        written = {
            "a": "an" if (described or noun)[0] in "aeiou" else "a",
            "this": "these" if number == PLURAL else "this",
        }
        ending = _adjective_ending(german_determiner, gender, case) if beschrieben else ""
        german = [_article(german_determiner, gender, case), beschrieben + ending, _noun(forms, gender, case)]
        return _joined([written.get(determiner, determiner), described, noun]), _joined(german)

    def _place(self):
        preposition, wo = self._pick(PREPOSITIONS)
        number = self._number()
        english, german = self._phrase(PLACES, DATIVE, number, self._determiner(number) or "the")
        german = f"{wo} {german}".replace("in dem ", "im ").replace("bei dem ", "beim ")
        return f"{preposition} {english}", german

    def _number(self):
        return PLURAL if self._happens(0.35) else "s"

    def _determiner(self, number):
        return self._pick([d for d in DETERMINERS if d != ("a" if number == PLURAL else "")])

    def _happens(self, probability):
        return self.rng.random() < probability

    def _pick(self, entries):
        return entries[self.rng.integers(len(entries))]


def _english_verb(tense, negated, person, verb, modal, question):
    """(auxiliary or finite verb, the rest of the predicate); in questions the subject stands
    between them.
    """
    base, third, past = verb[:3]
    no = "not" if negated else ""
    do = "does" if person == "3" else "do"
    if tense == "modal" and modal[0] == modal[1]:  # can, may
        return ("cannot", base) if modal[0] == "can" and negated and not question else (modal[0], _joined([no, base]))
    if tense == "modal":  # want to, have to: they behave as verbs do
        base, third = f"{modal[0]} {base}", f"{modal[1]} {base}"
    if tense == "future":
        return "will", _joined([no, base])
    if tense == "past":
        return ("did", _joined([no, base])) if negated or question else ("", past)
    return (do, _joined([no, base])) if negated or question else ("", third if person == "3" else base)


def _german_verb(tense, person, verb, modal, at_end):
    """(finite verb, what stands at the end of the clause); at_end: the finite verb comes after
    that.
    """
    third, infinitive, participle, prefix, helper = verb[3:]
    prefix = "" if prefix == "-" else prefix
    if tense == "past":
        forms = {"hat": ("habe", "hat", "haben"), "ist": ("bin", "ist", "sind")}[helper]
    elif tense == "future":
        forms = ("werde", "wird", "werden")
    elif tense == "modal":
        forms = (modal[2], modal[2], modal[3])
    else:
        forms = (infinitive[:-1], third, infinitive)  # sehe, sieht, sehen
    finite = forms[("1", "3", PLURAL).index(person)]
    if tense != "present":
        return finite, participle if tense == "past" else prefix + infinitive
    return (prefix + finite, "") if at_end else (finite, prefix)


def _article(determiner, gender, case):
    if determiner in EIN_WORDS:
        return EIN_WORDS[determiner] + EIN[gender][case]
    return ARTICLES[determiner][gender].split()[case] if determiner else ""


def _adjective_ending(determiner, gender, case):
    kind = "strong" if not determiner else "mixed" if determiner in EIN_WORDS else "weak"
    return ENDINGS[kind][gender][case]


def _noun(forms, gender, case):
    """forms: singular, plural, and perhaps the singular's other cases."""
    singular, plural, *weak = forms
    if gender == PLURAL:
        return plural + ("n" if case == DATIVE and plural[-1] not in "ns" else "")
    if weak and case != NOMINATIVE:
        return weak[0]
    if case == GENITIVE and gender != "f":
        return singular + ("s" if singular.endswith(("er", "el", "en")) else "es")
    return singular


def _joined(words):
    return " ".join(filter(None, words))


def _written(words, mark):
    return words[0].upper() + words[1:] + mark
