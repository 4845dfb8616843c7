//! What the words before a number say that it is.

use crate::surroundings::is_word;

/// Words that are looked at.
const WORDS: usize = 5;
/// Characters in which they stand.
const REACH: usize = 48;

/// Words that say that a phone number comes.
const PHONE: &str = "\
    phone telephone tel call calls called mobile cellphone fax dial ring whatsapp sms \
    hotline telefon telefonnummer handy mobil mobilnummer téléphone portable appelez teléfono \
    móvil llame telefono cellulare telefoon bel tlf puh puhelin telefone celular";
/// Words that say that an identity number comes.
const IDENTITY: &str = "\
    ssn social bsn burgerservicenummer sin nino national insurance aadhaar aadhar uidai \
    personnummer cpr hetu pesel nir dni nif cpf taxpayer tin steuernummer steuer \
    identifikationsnummer ahv tckn passport identity";
/// Words that say that the number names a thing.
const THING: &str = "\
    order orders invoice ticket ref reference id sku part serial batch lot version build \
    release case tracking parcel shipment account acct isbn issn ean upc gtin imei commit \
    revision rev issue bug line row page port pid customer transaction item article product \
    receipt booking policy claim po rma bestellung bestellnummer rechnung rechnungsnummer \
    auftrag commande facture pedido factura ordine fattura beställning ordernummer faktura \
    fakturanummer kundnummer zamówienie timestamp epoch size bytes";
/// Words that say that the number is a version or a section, not an address of the network.
const VERSION: &str = "\
    version versions v ver release build firmware kernel driver upgrade revision rev section \
    clause chapter paragraph article chrome oid";
/// Words that stand between the name of a thing and its number.
const BETWEEN: &str = "\
    no nr number num n nummer numéro número numero is was the to";

/// What stands behind the last mask: what was masked says nothing of its neighbours. Brackets of the text's own do not
/// part it.
fn behind_masks(near: &str) -> &str {
    let is_mask = |inner: &str| {
        let kind = inner.split('-').next().unwrap_or_default();
        !kind.is_empty() && kind.chars().all(|it| it.is_ascii_uppercase() || it == '_')
    };
    for (close, _) in near.rmatch_indices(']') {
        let (before, behind) = near.split_at(close);
        // One that begins before what is looked at may be a mask.
        if before
            .rsplit_once('[')
            .is_none_or(|(_, inner)| is_mask(inner))
        {
            return behind.get(1..).unwrap_or_default();
        }
    }
    near
}

/// The words before a place, the nearest one last, in lower case.
#[derive(Debug)]
pub struct Context(Vec<String>);

impl Context {
    /// The words before `at`.
    pub fn before(text: &str, at: usize) -> Self {
        let head = text.get(..at).unwrap_or_default();
        let from = head.char_indices().rev().take(REACH).last();
        let near = from
            .and_then(|(from, _)| head.get(from..))
            .unwrap_or_default();
        let near = behind_masks(near);
        let mut words: Vec<String> = near
            .split(|letter: char| !is_word(letter) || letter.is_numeric() || letter == '_')
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        words.drain(..words.len().saturating_sub(WORDS));
        Self(words)
    }

    fn has(&self, list: &str) -> bool {
        self.0.iter().any(|word| holds(list, word))
    }

    /// The last word that is not only there for grammar.
    fn names(&self, list: &str) -> bool {
        let last = self.0.iter().rev().find(|word| !holds(BETWEEN, word));
        last.is_some_and(|word| holds(list, word))
    }

    /// A phone number comes.
    pub fn says_phone(&self) -> bool {
        self.has(PHONE)
    }

    /// An identity number comes.
    pub fn says_identity(&self) -> bool {
        self.has(IDENTITY)
    }

    /// The number of a thing comes: an order, a part, a page.
    pub fn says_thing(&self) -> bool {
        self.names(THING) && !self.says_identity()
    }

    /// A version or a section comes.
    pub fn says_version(&self) -> bool {
        self.names(VERSION)
    }
}

fn holds(list: &str, word: &str) -> bool {
    list.split_ascii_whitespace().any(|known| known == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_comes() {
        for (text, phone, thing) in [
            ("please call me: ", true, false),
            ("Your order number is ", false, true),
            ("order to be paid by ", false, false),
            ("call about order ", true, true),
            ("Téléphone : ", true, false),
            ("ticket_id=", false, true),
            ("identity, id ", false, false),
            ("phone [at work]: ", true, false),
            ("phone [EMAIL]: ", false, false),
            ("phone [PHONE-abcdefghijklmnopabcd] [x] ", false, false),
            ("", false, false),
        ] {
            let context = Context::before(text, text.len());
            assert_eq!(context.says_phone(), phone, "{text}");
            assert_eq!(context.says_thing(), thing, "{text}");
        }
    }

    #[test]
    fn words_further_away_do_not_count() {
        let text = "phone one two three four five ";
        assert!(!Context::before(text, text.len()).says_phone());
    }
}
